"""`safevlm chat`: a conversation in the terminal, or one question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safevlm.data.images import ImageError, open_image
from safevlm.engine import Engine
from safevlm.types import Generation, Reply, Request, Verdict

HELP = """\
/image FILE   look at an image; starts a new conversation    /image with nothing: put the images away
/why          what the guard saw in the last request, and what it did
/reset        forget the conversation
/help         this text
/quit         leave (also Ctrl-D)"""


@dataclass
class ChatSession:
    """State between two lines of input."""

    images: list[str] = field(default_factory=list)
    history: list[tuple[str, str]] = field(default_factory=list)
    last: Reply | None = None

    def request(self, text: str) -> Request:
        return Request(text=text, images=tuple(self.images), history=tuple(self.history))


def ask(engine: Engine, text: str, images: Sequence[str], as_json: bool) -> int:
    """Answers one question on stdout, as text or as one JSON object. Exit code 0, also for a refusal."""
    reply = engine.reply(Request(text=text, images=tuple(images)))
    print(json.dumps(as_dict(reply), ensure_ascii=False) if as_json else reply.text)
    return 0


def talk(engine: Engine, images: Sequence[str]) -> int:
    """The interactive conversation; ends with /quit or the end of input."""
    for image in images:
        open_image(image)
    conversation = ChatSession(images=list(images))
    print(f"{engine.loaded.path} behind {engine.defense.name}. /help lists the commands.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        if line in ("/quit", "/exit"):
            return 0
        if line.startswith("/"):
            print(_command(conversation, line, engine))
        elif line:
            try:
                _answer(engine, conversation, line)
            except ValueError as error:  # bytes that are no text, an image that went away: the conversation goes on
                print(f"error: {' '.join(str(error).split())}")


def why(reply: Reply | None) -> str:
    """What the guard saw and did, for a person."""
    if reply is None:
        return "nothing was asked yet"
    verdict = reply.verdict
    lines = [_verdict_line(verdict)]
    for what, table in (("level", verdict.level_probabilities), ("category", verdict.category_probabilities)):
        if table:
            ranked = sorted(table.items(), key=lambda item: -item[1])
            lines.append(f"{what}: " + ", ".join(f"{name} {probability:.2f}" for name, probability in ranked))
    if reply.refused_by:
        asked = "its answer was held back" if reply.prompt else "the model was not asked"
        lines.append(f"answered by the guard ({reply.refused_by}); {asked}")
    lines += reply.trace or (() if reply.refused_by else ("the question went to the model unchanged",))
    return "\n".join(lines)


def _verdict_line(verdict: Verdict) -> str:
    if verdict.error:
        return "no verdict: the guard failed"
    if not verdict.looked:
        return f"not looked: {verdict.source or 'nobody'} did not look at this request, so nothing is known about it"
    return f"verdict: level {verdict.level}, category {verdict.category} (by {verdict.source})"


def as_dict(reply: Reply) -> dict[str, object]:
    """A reply as JSON-ready values."""
    return {
        "reply": reply.text,
        "refused_by": reply.refused_by,
        "verdict": reply.verdict.to_dict(),
        "prompt": reply.prompt,
        "seconds": round(reply.seconds, 4),
        "trace": list(reply.trace),
    }


def _answer(engine: Engine, conversation: ChatSession, line: str) -> None:
    reply = engine.reply(conversation.request(line), Generation())
    print(reply.text)
    conversation.last = reply
    conversation.history.append((line, reply.text))


def _command(conversation: ChatSession, line: str, engine: Engine) -> str:
    word, _, rest = line.partition(" ")
    actions = {
        "/image": lambda: _look(conversation, rest.strip()),
        "/why": lambda: why(conversation.last),
        "/reset": lambda: _reset(conversation),
        "/help": lambda: HELP,
    }
    return actions[word]() if word in actions else f"unknown command {word}\n{HELP}"


def _look(conversation: ChatSession, file: str) -> str:
    if not file:
        conversation.images.clear()
        conversation.history.clear()
        return "no image"
    try:
        open_image(file)
    except ImageError as error:
        return f"error: {error}"
    conversation.images[:] = [file]
    conversation.history.clear()
    return f"looking at {Path(file).name}"


def _reset(conversation: ChatSession) -> str:
    conversation.history.clear()
    return "forgotten"
