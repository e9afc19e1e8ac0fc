"""Who is at the page: a browser by a random number in its cookie, and its open pages by theirs."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie

from safevlm.serve.errors import ApiError

COOKIE = "safevlm-visitor"
MOST = 8192
"""Pages that are remembered; the oldest goes first."""


class Visitors:
    """Whose each page is."""

    def __init__(self) -> None:
        self._pages: OrderedDict[str, str] = OrderedDict()

    def check(self, tab: str, visitor: str) -> None:
        """ApiError 403: the page is another visitor's. Whoever names a page first has it."""
        if not tab:
            return
        owner = self._pages.setdefault(tab, visitor)
        self._pages.move_to_end(tab)
        while len(self._pages) > MOST:
            self._pages.popitem(last=False)
        if owner != visitor:
            raise ApiError(403, "this is another visitor's page; load it again", code="not_yours")


def new_visitor() -> str:
    return secrets.token_urlsafe(32)


def visitor_of(cookies: str) -> str:
    """Out of a `Cookie` header; empty: the page was not loaded yet."""
    name = cookie(cookies, COOKIE)
    return name if re.fullmatch(r"[\w-]{43}", name, re.ASCII) else ""


def cookie(cookies: str, name: str) -> str:
    """One of a `Cookie` header; empty where there is none."""
    try:
        found = SimpleCookie(cookies).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""
