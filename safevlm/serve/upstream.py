"""The OpenAI-compatible server that holds the model: asked over HTTP, and whatever is odd about it is an error.

Nothing of a client's request reaches it but the body that is given here: no header, no key. Its redirects are not
followed, its cookies not kept, and no proxy of the environment stands between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from safevlm.serve.client_log import hide_urls
from safevlm.serve.errors import ApiError
from safevlm.serve.server_events import ServerEvent, events_of, told_in, unknown_shape

CONNECTS = 10.0
"""Seconds in which a connection must stand."""
IDLE = 2.0
"""Seconds that an idle connection is kept: less than any server keeps it, so that none is closed while it is used."""
MOST_BYTES = 32 << 20
"""Of an answer that is not streamed."""
MOST_EVENT_BYTES = 4 << 20
ITS_FAULT = (400, 413, 422)
"""Answers of the upstream that say that the request cannot be used: too long, a value out of range."""
TOLD = 300
"""Characters of what the upstream says about a request, at most."""


class Upstream:
    """A server by its address."""

    def __init__(self, url: str, key: str = "", seconds: float = 300.0) -> None:
        """`url`: with or without `/v1`. `seconds`: a pause in its answer, at most. ValueError: no such address."""
        hide_urls()
        self.url = address(url)
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._client = httpx2.AsyncClient(
            headers=headers,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx2.Timeout(seconds, connect=min(CONNECTS, seconds)),
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=IDLE),
            trust_env=False,
        )

    async def models(self) -> list[str]:
        """Names of its models. ApiError: it does not tell."""
        async with self._asked("GET", "/models", "application/json") as response:
            told = told_in(await _whole(response))
        data = told.get("data")
        ids = [each.get("id") for each in data if isinstance(each, dict)] if isinstance(data, list) else []
        names = [name for name in ids if isinstance(name, str)]
        if not names:
            raise unknown_shape("no list of models")
        return names

    async def complete(self, body: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """A whole completion, as it came and read. ApiError 502, 504: none came; 400, 429: it cannot be had."""
        async with self._asked("POST", "/chat/completions", "application/json", body) as response:
            raw = await _whole(response)
        return raw, check_completion(told_in(raw))

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[ServerEvent]:
        """The events of a completion up to `[DONE]`. ApiError: as `complete`. Closing it ends the call."""
        async with self._asked("POST", "/chat/completions", "text/event-stream", body) as response:
            async for event in events_of(response.aiter_raw(), MOST_EVENT_BYTES):
                yield event

    async def close(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, kind: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """A response with status 200 and of this media type, its body not yet read."""
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {"Accept": kind, **({"Content-Type": "application/json"} if content is not None else {})}
        try:
            async with self._client.stream(method, self.url + path, content=content, headers=headers) as response:
                if response.status_code != httpx2.codes.OK:
                    raise await _refused(response)
                given = response.headers.get("content-type", "").split(";")[0].strip().lower()
                if given != kind or response.headers.get("content-encoding", "identity") != "identity":
                    raise unknown_shape(f"what is not {kind}")
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ApiError(502, "the upstream cannot be reached", code="upstream_unreachable") from error
        except httpx2.TimeoutException as error:
            raise too_slow() from error
        except httpx2.HTTPError as error:
            raise ApiError(502, "the upstream's answer ended before its end", code="upstream_broke_off") from error


def only_model(url: str, key: str = "") -> str:
    """The name of the only model at an address. ValueError: it has several, or does not tell."""

    async def asked() -> list[str]:
        upstream = Upstream(url, key, CONNECTS)
        try:
            return await upstream.models()
        finally:
            await upstream.close()

    try:
        names = asyncio.run(asked())
    except ApiError as error:
        raise ValueError(f"--upstream {url}: {error.message}; is it running? (or give --upstream-model)") from error
    if len(names) > 1:
        raise ValueError(
            f"--upstream {url} has {len(names)} models; choose by --upstream-model: {', '.join(names[:8])}"
        )
    return names[0]


def address(url: str) -> str:
    """`http://host:8001` or `http://host:8001/v1` → the latter. ValueError: not an address of a server."""
    parsed = httpx2.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment or parsed.userinfo:
        raise ValueError(f"{url}: not the address of a server; write http://127.0.0.1:8001/v1")
    path = parsed.path.rstrip("/")
    return str(parsed.copy_with(path=path if path.endswith("/v1") else f"{path}/v1"))


def too_slow() -> ApiError:
    return ApiError(504, "the upstream gave no answer in time", code="upstream_timeout")


def check_completion(told: dict[str, Any]) -> dict[str, Any]:
    """ApiError 502: it is not one completion of an assistant's message."""
    choices = told.get("choices")
    one = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    message = one.get("message") if isinstance(one, dict) else None
    if told.get("object") != "chat.completion" or not isinstance(message, dict):
        raise unknown_shape("what is no chat.completion")
    if message.get("role") != "assistant" or not isinstance(message.get("content"), str | None):
        raise unknown_shape("what is no assistant's message")
    return told


async def _whole(response: httpx2.Response) -> bytes:
    read = bytearray()
    async for piece in response.aiter_raw():
        read += piece
        if len(read) > MOST_BYTES:
            raise unknown_shape(f"more than {MOST_BYTES:,} bytes")
    return bytes(read)


async def _refused(response: httpx2.Response) -> ApiError:
    """What a client is told of an answer that is none. What the upstream says is repeated where the request is at
    fault; of its own troubles nothing is."""
    status = response.status_code
    if status == 429:
        wait = response.headers.get("retry-after", "1")
        headers = {"Retry-After": wait if wait.isdigit() else "1"}
        return ApiError(429, "the upstream has more requests than it takes", code="upstream_busy", headers=headers)
    if status in ITS_FAULT:
        try:
            told = told_in(await _whole(response)).get("error")
        except ApiError:
            told = None
        said = told.get("message") if isinstance(told, dict) else None
        line = (said.strip().splitlines() or [""])[0] if isinstance(said, str) else ""
        return ApiError(
            400, f"the upstream cannot use the request: {line[:TOLD]}".rstrip(": "), code="upstream_refused"
        )
    return ApiError(502, f"the upstream answered with status {status}", code="upstream_failed")
