"""What was said in a conversation so far, with the images of each turn; as a request, and as a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from safevlm.data.images import image_format, open_image
from safevlm.serve.console.account import as_dict
from safevlm.serve.console.partners import ChatAnswer
from safevlm.types import Request


@dataclass(frozen=True)
class ChatImage:
    """An image of a question. Its bytes are kept, so that the conversation goes on when the file is gone."""

    name: str
    uri: str
    """`data:` URI of the file's bytes."""

    @classmethod
    def opened(cls, path: str) -> ChatImage:
        """ImageError: a file that cannot be used."""
        open_image(path)
        data = Path(path).read_bytes()
        kind = Image.MIME.get(image_format(data), "image/png")
        return cls(Path(path).name, f"data:{kind};base64,{base64.b64encode(data).decode()}")


@dataclass(frozen=True)
class ChatTurn:
    """A question and what was answered."""

    question: str
    images: tuple[ChatImage, ...]
    answer: ChatAnswer
    is_stopped: bool
    """Whether the user stopped the answer."""


@dataclass
class Transcript:
    """All turns, and the images that wait for the next question."""

    system: str = ""
    waiting: list[ChatImage] = field(default_factory=list)
    turns: list[ChatTurn] = field(default_factory=list)

    def request(self, text: str) -> Request:
        """The next question, with all that was said before. Each turn has its own images."""
        return self._request(self.turns, text, self.waiting)

    def keep(self, question: str, answer: ChatAnswer, is_stopped: bool) -> None:
        """A turn that was answered. An answer without a word is none: the images wait for the next question."""
        if answer.reply.text.strip():
            self.turns.append(ChatTurn(question, tuple(self.waiting), answer, is_stopped))
            self.waiting.clear()

    def forget(self) -> None:
        """All turns; their images wait for the next question."""
        self.waiting[:0] = [image for turn in self.turns for image in turn.images]
        self.turns.clear()

    def as_json(self) -> str:
        """Of one turn or more: OpenAI messages, and for each answer its place among them and what the guard said."""
        *earlier, last = self.turns
        asked = openai_messages(self._request(earlier, last.question, last.images))
        messages = [*asked, {"role": "assistant", "content": last.answer.reply.text}]
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        answers = [_saved(place, turn) for place, turn in zip(places, self.turns, strict=True)]
        return json.dumps({"messages": messages, "answers": answers}, ensure_ascii=False, indent=1) + "\n"

    def _request(self, turns: Sequence[ChatTurn], text: str, images: Sequence[ChatImage]) -> Request:
        per_turn = [*(turn.images for turn in turns), images]
        return Request(
            text=text,
            images=[image.uri for each in per_turn for image in each],
            history=[(turn.question, turn.answer.reply.text) for turn in turns],
            system=self.system,
            images_per_turn=[len(each) for each in per_turn],
        )


def openai_messages(request: Request) -> list[dict[str, Any]]:
    """A request whose images are `data:` URIs as OpenAI messages; the images of a turn stand before its words."""
    images = iter(request.images)
    messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
    answers = [*(answer for _, answer in request.history), None]
    for (question, count), answer in zip(request.turns, answers, strict=True):
        parts = [{"type": "image_url", "image_url": {"url": next(images)}} for _ in range(count)]
        messages.append(
            {"role": "user", "content": [*parts, {"type": "text", "text": question}] if parts else question}
        )
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages


def _saved(place: int, turn: ChatTurn) -> dict[str, object]:
    reply = as_dict(turn.answer.reply)
    told: Sequence[str] = ("refused_by", "verdict", "seconds", "trace")
    return {
        "message": place,
        "by": turn.answer.by,
        **{name: reply[name] for name in told},
        "images": [image.name for image in turn.images],
        "stopped": turn.is_stopped,
    }
