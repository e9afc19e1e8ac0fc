"""The server's process: what it tells when it is to end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

GRACE = 10
"""Seconds for requests in progress, once it is told to end."""


def run(app: Any, host: str, port: int, at_exit: Callable[[], object] = lambda: None) -> int:
    """Serves until a signal ends it; the exit code. `at_exit`: is called when it is told to end, before it waits for
    what is in progress."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config, at_exit)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends, and then lets the signal have its effect
    try:
        server.run()
    except KeyboardInterrupt:  # it has ended, as it was told
        return 0
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, at_exit: Callable[[], object]) -> None:
        super().__init__(config)
        self._at_exit = at_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._at_exit()
        super().handle_exit(sig, frame)
