// A function on Node's own server measured by OpenTelemetry's instrumentation, with the exporter's own server.
'use strict';

const { registerInstrumentations } = require('@opentelemetry/instrumentation');
const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http');
const { MeterProvider } = require('@opentelemetry/sdk-metrics');
const { PrometheusExporter } = require('@opentelemetry/exporter-prometheus');

const meterProvider = new MeterProvider({
  readers: [new PrometheusExporter({ host: '127.0.0.1', port: Number(process.env.METRICS_PORT) })],
});
// Without the hook the scrapes are counted as requests, and no label tells them; see the capture otel-node-scrapes.
const ignore = (req) => req.url === '/healthz' || req.socket.localPort === Number(process.env.METRICS_PORT);
registerInstrumentations({
  meterProvider,
  instrumentations: [new HttpInstrumentation(process.env.NO_HOOK ? {} : { ignoreIncomingRequestHook: ignore })],
});

const http = require('http'); // after the instrumentation, or it is not measured

http.createServer((req, res) => {
  const url = new URL(req.url, 'http://function');
  const answer = () => {
    res.statusCode = url.searchParams.get('fail') ? 500 : 200;
    res.end('hello');
  };
  if (url.pathname === '/healthz') {
    res.end('OK');
  } else if (url.searchParams.get('call')) {
    http.get(url.searchParams.get('call'), (r) => r.resume().on('end', answer));
  } else {
    setTimeout(answer, Number(url.searchParams.get('sleep') || 0));
  }
}).listen(Number(process.env.PORT), '127.0.0.1');
