// The shape of Kubeless's Node runtime: express and prom-client 10, calls counted as they begin, durations only of
// calls that did not fail, the label of the method led by the module's name.
'use strict';

const express = require('express');
const prom = require('prom-client');

const calls = new prom.Counter({
  name: 'function_calls_total', help: 'Number of calls to user function', labelNames: ['method'],
});
const failures = new prom.Counter({
  name: 'function_failures_total', help: 'Number of exceptions in user function', labelNames: ['method'],
});
const duration = new prom.Histogram({
  name: 'function_duration_seconds', help: 'Duration of user function in seconds', labelNames: ['method'],
});

const app = express();
app.get('/healthz', (req, res) => res.status(200).send('OK'));
app.get('/metrics', (req, res) => {
  res.type(prom.register.contentType);
  res.send(prom.register.metrics());
});
app.all('*', (req, res) => {
  const method = `function-${req.method}`;
  const end = duration.labels(method).startTimer();
  calls.labels(method).inc();
  setTimeout(() => {
    if (req.query.fail) {
      failures.labels(method).inc();
      res.status(500).send('as asked');
      return;
    }
    res.end('hello');
    end();
  }, Number(req.query.sleep || 0));
});
app.listen(Number(process.env.PORT), '127.0.0.1');
