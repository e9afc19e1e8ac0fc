"""What the HTTP client writes to its log: each URL, and that of an image is a client's content."""

from __future__ import annotations

import logging


def hide_urls() -> None:
    """Of what httpx2 logs only warnings stay."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)
