"""A Flask function measured by OpenTelemetry's instrumentation, with the exporter's own server for the metrics."""
import os
import time
import urllib.request

from flask import Flask, request
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.urllib import URLLibInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader()]))
start_http_server(int(os.environ["METRICS_PORT"]), "127.0.0.1")

app = Flask("function")
FlaskInstrumentor().instrument_app(app)
URLLibInstrumentor().instrument()


@app.get("/healthz")
def healthz():
    return "OK"


@app.route("/", methods=["GET", "POST"])
def call():
    time.sleep(int(request.args.get("sleep", "0")) / 1000)
    if request.args.get("fail"):
        return "as asked", 500
    if "call" in request.args:
        urllib.request.urlopen(request.args["call"], timeout=5).read()
    return "hello"


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
