"""A real server of a tiny guarded model on loopback, in a thread, and what clients send to it."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from threading import Thread
from typing import Any

import openai
import uvicorn
from PIL.Image import Image

from safevlm.engine import Engine
from safevlm.serve.access import Keys
from safevlm.serve.app import create_app
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.limits import Limits

NAME = "tiny"
STARTS = 30.0
"""Seconds in which a server must answer."""


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    model: GuardedModel
    address: str

    def client(self, **options: Any) -> openai.OpenAI:
        settings = {"api_key": "none", "max_retries": 0, "timeout": 60.0} | options
        return openai.OpenAI(base_url=f"{self.address}/v1", **settings)


@contextmanager
def serving(engine: Engine, *, keys: tuple[str, ...] = (), **limits: Any) -> Iterator[Served]:
    """Serves `engine` until the block ends. Without `keys` the deployment says who may ask."""
    model = GuardedModel(engine, NAME, Limits(**limits))
    with listening(create_app(model, Keys(keys) if keys else None)) as address:
        yield Served(model, address)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an app that is served until the block ends."""
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    thread = Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + STARTS
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(STARTS)


def uri(image: Image, format: str = "PNG", **options: Any) -> str:
    file = BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_part(image: Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri(image)}}


def asked(text: str = "", *images: Image) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": [*map(image_part, images), *([{"type": "text", "text": text}] if text else [])]}
