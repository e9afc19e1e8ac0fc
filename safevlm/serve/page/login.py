"""The form that asks for an API key, without a script."""

from __future__ import annotations

import html
from pathlib import Path

FORM = Path(__file__).with_name("login.html")


def login_page(trouble: str = "") -> str:
    """`trouble`: what was wrong with the last try."""
    told = f'<p id="trouble" role="alert">{html.escape(trouble)}</p>' if trouble else ""
    return FORM.read_text(encoding="utf-8").replace("<!-- trouble -->", told)
