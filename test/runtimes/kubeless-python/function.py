"""The shape of Kubeless's Python runtime: bottle on cherrypy's server, calls counted as they begin, by method."""
import os
import time

import bottle
import prometheus_client as prom

CALLS = prom.Counter("function_calls_total", "Number of calls to user function", ["method"])
FAILURES = prom.Counter("function_failures_total", "Number of exceptions in user function", ["method"])
DURATION = prom.Histogram("function_duration_seconds", "Duration of user function in seconds", ["method"])


@bottle.get("/healthz")
def healthz():
    return "OK"


@bottle.get("/metrics")
def metrics():
    bottle.response.content_type = prom.CONTENT_TYPE_LATEST
    return prom.generate_latest(prom.REGISTRY)


@bottle.route("/<:re:.*>", method=["GET", "POST", "PATCH", "DELETE"])
def call():
    method = bottle.request.method
    CALLS.labels(method).inc()
    with FAILURES.labels(method).count_exceptions(), DURATION.labels(method).time():
        time.sleep(int(bottle.request.query.get("sleep", "0")) / 1000)
        if bottle.request.query.get("fail"):
            raise RuntimeError("as asked")
        return "hello"


if __name__ == "__main__":
    bottle.run(server="cheroot", host="127.0.0.1", port=int(os.environ["PORT"]), quiet=True)
