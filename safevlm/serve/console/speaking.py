"""An answer as it is heard: written piece by piece, until it ends or Ctrl-C stops it."""

from __future__ import annotations

from dataclasses import dataclass

from safevlm.serve.console.partners import AnswerStream, ChatAnswer
from safevlm.serve.console.screen import Screen


@dataclass(frozen=True)
class Heard:
    """What came of a question."""

    answer: ChatAnswer | None
    """None: stopped before anything was known."""
    is_stopped: bool


def speak(stream: AnswerStream, screen: Screen) -> Heard:
    """Writes an answer, and closes its line whatever happens. Raises what the stream raises."""
    said, is_stopped = "", False
    try:
        try:
            for piece in stream:
                said += piece
                screen.write(piece)
        except KeyboardInterrupt:
            is_stopped = True
        answer = stream.end()
    except BaseException:
        if said:
            screen.line()
        raise
    text = answer.reply.text if answer is not None else said
    rest = text.removeprefix(said) if text.startswith(said) else ""
    screen.line(rest)
    _tell(screen, answer, is_stopped)
    return Heard(answer, is_stopped)


def _tell(screen: Screen, answer: ChatAnswer | None, is_stopped: bool) -> None:
    if is_stopped:
        screen.note("stopped")
        return
    reply = answer.reply if answer is not None else None
    if reply is None:
        return
    if reply.refused_by:
        screen.note(f"refused by {reply.refused_by}; /why")
    elif reply.ended == "length":
        screen.note("cut at its longest; --max-new-tokens")
    if not reply.text.strip():
        screen.note("no answer in words; the question is not kept")
