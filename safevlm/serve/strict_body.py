"""A body as strict JSON: UTF-8, no key twice, finite numbers, whole characters, not too many parts.

Two readers of one body must read the same in it: the guard, and whoever answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from safevlm.files import strict_json
from safevlm.serve.errors import ApiError

MOST_PARTS = 20_000
"""Values of one body. 32 MB of brackets would be gigabytes of lists, and of errors about each of them."""
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
OPENERS = ",[{"


class StrictRequest(Request):
    """A request whose body is read strictly."""

    async def json(self) -> Any:
        """ApiError 400: no JSON, or JSON that two readers may read differently."""
        return read_body(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def read_body(body: bytes) -> Any:
    """The value that a body holds. ApiError 400: no JSON, or JSON that two readers may read differently."""
    try:
        text = body.decode("utf-8-sig")
        if _parts(text) > MOST_PARTS:
            raise _invalid(f"it has more than {MOST_PARTS:,} values")
        return strict_json.decode(text)
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    except strict_json.FAULTS as error:
        raise _invalid(strict_json.told(error)) from error


def _parts(text: str) -> int:
    """About as many values as the text has; the strings are left out only where their commas could matter."""
    count = sum(map(text.count, OPENERS))
    return count if count <= MOST_PARTS else sum(map(STRING.sub("", text).count, OPENERS))


def _invalid(message: str) -> ApiError:
    return ApiError(400, f"the body is no JSON that can be read here: {message}", code="invalid_json")
