"""What a server takes from one request, and from all of them; checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from safevlm.data.images import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Beyond one of them a request gets an error that names the bound."""

    body_bytes: int = 32 << 20
    """Of a request's body."""
    body_seconds: float = 60.0
    """In which a body must have come."""
    held_bytes: int = 256 << 20
    """Of the bodies of all requests in progress; the next one gets 429 with Retry-After."""
    image_bytes: int = 16 << 20
    """Of one image's file."""
    pixels: int = MAX_PIXELS
    """Of one image, before it is scaled to what the model reads."""
    images: int = 16
    """Of all turns of one request."""
    messages: int = 256
    characters: int = 400_000
    """Of all words of one request."""
    decoding: int = 2
    """Images that are decoded at a time; each takes up to 4 bytes a pixel while it is."""
    waiting: int = 128
    """Requests in the queue; the next one gets 429 with Retry-After."""
    batch: int = 16
    """Requests that the model answers together."""
    seconds: float = 300.0
    """From a request's arrival to the end of its answer."""
