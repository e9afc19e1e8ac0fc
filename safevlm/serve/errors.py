"""Answers that are errors, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}
"""By status; every other one is the request's own fault."""
NO_STORE = {"Cache-Control": "no-store"}
"""Of every answer about a request."""


class ApiError(Exception):
    """What a client is told in place of an answer. The message names the field; no path and no traceback is in it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def stuck(seconds: float) -> ApiError:
    """503: what the model works at does not end, or it works no more; nobody is made to wait for that."""
    return ApiError(
        503,
        "the guarded model does not answer, so nothing is let through",
        code="not_answering",
        headers={"Retry-After": str(max(1, round(seconds)))},
    )


def busy(seconds: int = 1) -> ApiError:
    """429: the queue is full."""
    return ApiError(
        429,
        f"the server has as many requests waiting as it takes; try again in {seconds} s",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )
