"""A FastAPI function with prometheus-fastapi-instrumentator, metrics at the function's own port."""
import asyncio
import os

import uvicorn
from fastapi import FastAPI, Response
from prometheus_fastapi_instrumentator import Instrumentator

app = FastAPI()
Instrumentator(
    should_instrument_requests_inprogress=True,
    inprogress_name="http_requests_inprogress",
).instrument(app).expose(app)


@app.get("/healthz")
async def healthz():
    return "OK"


@app.api_route("/", methods=["GET", "POST"])
async def call(response: Response, sleep: int = 0, fail: int = 0):
    await asyncio.sleep(sleep / 1000)
    if fail:
        response.status_code = 500
    return "hello"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
