"""What stands in front of the page: which paths there are, from which page a request may come, and who is logged in.

A browser sends an uploaded file as a form, which pages of anybody may send too; so whatever names its origin must name
this server's. What a page may load is said in its headers: nothing of another server's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from starlette.responses import HTMLResponse, RedirectResponse, Response

from safevlm.serve.access import CALLER
from safevlm.serve.errors import ApiError
from safevlm.serve.exchange import App, Message, Receive, Scope, Send
from safevlm.serve.page import bodies, paths
from safevlm.serve.page.answers import HeldAnswer, with_cookie, without_foreign
from safevlm.serve.page.login import login_page
from safevlm.serve.page.sessions import COOKIE, SECONDS, Sessions
from safevlm.serve.page.stopping import Stopping
from safevlm.serve.page.uploads import Uploads
from safevlm.serve.page.visitors import Visitors, visitor_of

CONTENT = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "manifest-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
FILE_CONTENT = "default-src 'none'; sandbox"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
FORM_BYTES = 8192
READING = ("GET", "HEAD")
OWN_SITES = ("same-origin", "none")
"""`Sec-Fetch-Site` of the page itself, and of an address that was typed."""
LINKED = ("/", paths.ROOT, f"{paths.ROOT}/", paths.LOGIN)
OTHERS = "the page does not answer to pages of others"
NOTHING = "there is nothing at this address"
CHUNKED = b"transfer-encoding"


class PageDoor:
    """ASGI middleware. ApiError: a path that is not there, another origin, nobody who is logged in, or what is another
    visitor's."""

    def __init__(self, app: App, sessions: Sessions, uploads: Uploads, stopping: Stopping) -> None:
        self.app = app
        self.sessions = sessions
        self.uploads = uploads
        self.stopping = stopping
        self.visitors = Visitors()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http" or not paths.covers(scope["path"]):
            await self.app(scope, receive, send)
        else:
            await self._page(scope, receive, _with_headers(scope["path"], send))

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method, path, cookies = scope["method"], scope["path"], headers.get("cookie", "")
        check_origin(method, path, headers)
        if path in ("/", paths.ROOT):
            await RedirectResponse(f"{paths.ROOT}/", 307)(scope, receive, send)
            return
        if not paths.is_answered(method, path):
            raise ApiError(404, NOTHING)
        if path in (paths.LOGIN, paths.LOGOUT):
            await (await self._entry(method, path, cookies, receive, scope["scheme"]))(scope, receive, send)
            return
        if path.startswith(paths.PUBLIC):
            await self.app(scope, receive, send)
            return
        try:
            CALLER.set(self.sessions.caller(cookies))
        except ApiError:
            if path != f"{paths.ROOT}/":
                raise
            await RedirectResponse(paths.LOGIN, 303)(scope, receive, send)
            return
        await self._own(scope, receive, send, visitor_of(cookies))

    async def _own(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        """What belongs to a visitor."""
        path = scope["path"]
        if path in paths.WELCOME:
            await self._welcome(scope, receive, send if visitor else with_cookie(scope["scheme"], send))
        elif path.startswith(paths.FILE):
            if not self.uploads.is_own(visitor, path.removeprefix(paths.FILE)):
                raise ApiError(404, NOTHING)
            await self.app(scope, receive, send)
        elif path.startswith(paths.HEARTBEAT):
            await self._heartbeat(scope, receive, send, visitor)
        elif path == paths.UPLOAD:
            await self._upload(scope, receive, send, visitor)
        elif scope["method"] == "POST":
            await self._asked(scope, receive, send, visitor)
        else:
            if path == paths.EVENTS:
                query = parse_qs(scope["query_string"].decode("latin-1"))
                self.visitors.check(query.get(bodies.TAB, [""])[0], visitor)
            await self.app(scope, receive, send)

    async def _welcome(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = HeldAnswer(send)
        await self.app(scope, receive, answer)
        if scope["path"] == f"{paths.ROOT}/":
            answer.body = without_foreign(answer.body)
        await answer.release()

    async def _heartbeat(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        """Lasts as long as a page is open."""
        tab = scope["path"].removeprefix(paths.HEARTBEAT)
        self.visitors.check(tab, visitor)
        self.uploads.opened(visitor, tab)
        try:
            await self.stopping.until(self.app, scope, receive, send)
        finally:
            self.uploads.closed(visitor, tab)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        if not visitor:
            raise ApiError(403, "load the page first; it gives you a name", code="not_yours")
        self.uploads.check_room()
        answer = HeldAnswer(send)
        await self.app(scope, receive, answer)
        if answer.status == 200:
            self.uploads.keep(visitor, json.loads(answer.body))
        await answer.release()

    async def _asked(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        body = bodies.checked(await bodies.whole(receive), lambda name: self.uploads.is_own(visitor, name))
        self.visitors.check(str(body.get(bodies.TAB) or ""), visitor)
        content = json.dumps(body).encode()
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", CHUNKED)]
        length = (b"content-length", str(len(content)).encode())
        messages = iter([{"type": "http.request", "body": content}])

        async def receiving() -> Message:
            return next(messages, None) or await receive()

        await self.app({**scope, "headers": [*headers, length]}, receiving, send)

    async def _entry(self, method: str, path: str, cookies: str, receive: Receive, scheme: str) -> Response:
        """Login and logout."""
        if path == paths.LOGOUT:
            self.sessions.end(cookies)
            gone = RedirectResponse(paths.LOGIN, 303)
            gone.delete_cookie(COOKIE, path=paths.ROOT)
            return gone
        if method != "POST":
            return HTMLResponse(login_page())
        try:
            session = self.sessions.begin(await _field(receive, "key"))
        except ApiError:
            return HTMLResponse(login_page("There is no such key."), 401)
        entered = RedirectResponse(f"{paths.ROOT}/", 303)
        entered.set_cookie(
            COOKIE,
            session,
            max_age=SECONDS,
            path=paths.ROOT,
            secure=scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return entered


def check_origin(method: str, path: str, headers: Mapping[str, str]) -> None:
    """ApiError 403: a page of another origin asks. A link to the page from somewhere else is no asking.

    Programs name no origin; browsers do, and no page can make them leave it out.
    """
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise ApiError(403, OTHERS, code="origin")
    is_link = method in READING and headers.get("sec-fetch-mode") == "navigate" and path in LINKED
    if headers.get("sec-fetch-site", "none") not in OWN_SITES and not is_link:
        raise ApiError(403, OTHERS, code="origin")


async def _field(receive: Receive, name: str) -> str:
    """Of a form. ApiError 413: no login is that long."""
    body = await bodies.whole(receive)
    if len(body) > FORM_BYTES:
        raise ApiError(413, f"the form has more than {FORM_BYTES:,} bytes", code="too_large")
    return parse_qs(body.decode("latin-1")).get(name, [""])[0].strip()


def _with_headers(path: str, send: Send) -> Send:
    is_fixed = re.match(f"{paths.ROOT}/(assets|static|svelte)/", path)
    added = {**HEADERS, "content-security-policy": FILE_CONTENT if path.startswith(paths.FILE) else CONTENT}
    if not is_fixed:
        added["cache-control"] = "no-store"

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message.get("headers", ())
                if name.decode("latin-1").lower() not in added and not name.lower().startswith(b"access-control-")
            ]
            new = [(name.encode(), value.encode()) for name, value in added.items()]
            message = {**message, "headers": [*kept, *new]}
        await send(message)

    return sending
