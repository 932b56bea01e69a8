// An express function with express-prom-bundle, metrics at the function's own port.
'use strict';

const express = require('express');
const bundle = require('express-prom-bundle');

const app = express();
app.use(bundle({ includeMethod: true, includePath: true }));
app.get('/healthz', (req, res) => res.send('OK'));
app.all('/', (req, res) => {
  setTimeout(() => res.status(req.query.fail ? 500 : 200).send('hello'), Number(req.query.sleep || 0));
});
app.listen(Number(process.env.PORT), '127.0.0.1');
