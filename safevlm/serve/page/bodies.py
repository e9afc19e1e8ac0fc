"""What the page's own program sends, read before the library that draws the page reads it.

That library takes a file by the name that a browser gives, fetches it where the name is an address, and makes parts of
a page that a conversation names. Here every name must be one of the visitor's own files, and nothing else is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from safevlm.serve.errors import ApiError
from safevlm.serve.exchange import Receive
from safevlm.serve.page import paths

TAB = "session_hash"
"""Name of a page in a body."""
LEVELS = 64

IsOwn = Callable[[str], bool]


def checked(body: bytes, is_own: IsOwn) -> dict[str, Any]:
    """A body with its files by their names alone. ApiError: it is not the page's, or names what is not the visitor's
    own."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "this is nothing that the page sends") from error
    if not isinstance(value, dict):
        raise ApiError(400, "this is nothing that the page sends")
    return dict(_checked(value, is_own, LEVELS))


async def whole(receive: Receive) -> bytes:
    """A body, within the server's limits."""
    body, is_over = b"", False
    while not is_over:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the body did not come whole")
        body += message.get("body", b"")
        is_over = not message.get("more_body", False)
    return body


def local_name(name: str) -> str:
    """Of a file, which the page also calls by its address."""
    path = unquote(urlsplit(name).path) if name.startswith(("http://", "https://")) else name
    return path[path.index(paths.FILE) + len(paths.FILE) :] if paths.FILE in path else name


def _checked(value: Any, is_own: IsOwn, levels: int) -> Any:
    if levels == 0:
        raise ApiError(400, "this is nothing that the page sends")
    if isinstance(value, list):
        return [_checked(each, is_own, levels - 1) for each in value]
    if not isinstance(value, dict):
        return value
    if "component" in value:
        raise ApiError(400, "a conversation holds text and images, and no parts of a page")
    inside = {key: _checked(each, is_own, levels - 1) for key, each in value.items()}
    return _file(inside, is_own) if value.get("path") else inside


def _file(value: dict[str, Any], is_own: IsOwn) -> dict[str, Any]:
    name = local_name(value["path"]) if isinstance(value["path"], str) else ""
    if not is_own(name):
        raise ApiError(400, "this is no image that you sent to the page, or it is gone", code="not_yours")
    return {**value, "path": name, "url": None}
