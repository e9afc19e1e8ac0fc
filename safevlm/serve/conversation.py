"""Bodies → one question with its images and earlier turns, within the server's limits."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from safevlm.messages import Message
from safevlm.serve.errors import ApiError
from safevlm.serve.flat_images import FlatImage, ImageOpener
from safevlm.serve.limits import Limits
from safevlm.serve.wire.chat import ChatBody, ChatMessage
from safevlm.types import MAX_SEED, Generation, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedRequest:
    """What a client asks, ready for the guard."""

    request: Request
    """Its images are `images`, opened."""
    images: tuple[FlatImage, ...]


@dataclass(frozen=True)
class Places:
    """What errors call a body's messages."""

    messages: str = "messages"
    before: int = 0
    """Messages in front that stand in another field of the body."""
    url: str = ".image_url.url"
    """Of an image's part."""

    def image(self, turn: int, place: int) -> str:
        return f"{self.messages}[{turn - self.before}].content[{place}]{self.url}"

    def told(self, message: str) -> str:
        """An error about `messages[i]`, in this body's words."""
        # neighbours of one side can be read as one turn, the one in the other field too
        said = re.sub(
            r"messages\[(\d+)\]", lambda found: f"{self.messages}[{max(int(found[1]) - self.before, 0)}]", message
        )
        return re.sub(r"^messages:", f"{self.messages}:", said)


CHAT = Places()


async def opened_request(
    messages: Sequence[ChatMessage],
    images: ImageOpener,
    id: str,
    read: Sequence[Message] | None = None,
    *,
    places: Places = CHAT,
) -> OpenedRequest:
    """ApiError names the message: over a limit, out of order, or with an image that cannot be used.

    `read`: the turns as the guard reads them, where these are not one by one the body's messages.
    """
    _check_size(messages, images.limits, places)
    uris = [
        (places.image(turn, place), url) for turn, message in enumerate(messages) for place, url in message.images()
    ]
    try:
        request = Request.from_messages(read or [_plain(message) for message in messages], id=id)
    except (TypeError, ValueError) as error:
        raise ApiError(400, places.told(str(error)), param=places.messages, code="invalid_messages") from error
    try:
        async with asyncio.timeout(images.limits.seconds):
            opened = await images.open([url for _, url in uris], [place for place, _ in uris])
    except TimeoutError as error:
        log.error("images of a request were not opened within %g seconds", images.limits.seconds)
        raise ApiError(504, "the images did not open in time, so nothing was let through", code="timeout") from error
    request = dataclasses.replace(request, images=tuple(image.image for image in opened))
    return OpenedRequest(request, tuple(opened))


def generation_of(body: ChatBody, most: int) -> Generation:
    """Greedy unless a temperature is given; without a seed every answer is drawn anew. `most`: new tokens."""
    temperature = body.temperature or 0.0
    wanted = body.max_completion_tokens or body.max_tokens
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if not all(stop):
        raise ApiError(400, "stop: an empty text ends every answer at once; leave it out", param="stop")
    return Generation(
        max_new_tokens=min(wanted, most) if wanted is not None else min(Generation().max_new_tokens, most),
        temperature=temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbelow(MAX_SEED) if body.seed is None and temperature else body.seed or 0,
        stop=stop,
    )


def _plain(message: ChatMessage) -> dict[str, object]:
    """As `safevlm.messages` reads it, images as empty places: they are opened here."""
    images = [{"type": "image_url", "image_url": {"url": "data:"}} for _ in message.images()]
    words = message.text()
    return {"role": message.role, "content": [*images, *([{"type": "text", "text": words}] if words else [])]}


def _check_size(messages: Sequence[ChatMessage], limits: Limits, places: Places) -> None:
    if len(messages) > limits.messages:
        raise ApiError(
            400,
            f"{len(messages)} messages; this server takes {limits.messages}",
            param=places.messages,
            code="too_long",
        )
    characters = sum(len(message.text()) for message in messages)
    if characters > limits.characters:
        raise ApiError(
            400,
            f"{characters:,} characters; this server takes {limits.characters:,}",
            param=places.messages,
            code="too_long",
        )
