"""The usual first server: FastAPI, and a lock around the engine. It batches nothing.

Hands out a picture that was encoded beforehand.

    python -m tests.bench.overhead.fastapi_server PORT
"""

from __future__ import annotations

import sys
import threading

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from tests.bench.overhead.engine import Engine, encode_jpeg, texture_HWC


class Wanted(BaseModel):
    """What the client sends."""

    prompt: str
    seed: int
    format: str


def create_app() -> FastAPI:
    """One route, in the threads that FastAPI gives to plain functions."""
    engine, lock, picture = Engine.from_environment(), threading.Lock(), encode_jpeg(texture_HWC(0))
    app = FastAPI()

    @app.post("/v1/generate")
    def generate(wanted: Wanted) -> Response:
        with lock:
            engine.draw(1, wanted.seed)
        return Response(picture, media_type="image/jpeg")

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), access_log=False, log_level="warning")
