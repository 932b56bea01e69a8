"""A Flask function with prometheus_flask_exporter, metrics at the function's own port."""
import os
import time

from flask import Flask, request
from prometheus_flask_exporter import PrometheusMetrics

app = Flask("function")
PrometheusMetrics(app)


@app.get("/healthz")
def healthz():
    return "OK"


@app.route("/", methods=["GET", "POST"])
def call():
    time.sleep(int(request.args.get("sleep", "0")) / 1000)
    if request.args.get("fail"):
        return "as asked", 500
    return "hello"


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
