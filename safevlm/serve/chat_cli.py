"""`safevlm chat`: a conversation in the terminal, or one question."""

from __future__ import annotations

import json
from collections.abc import Sequence

from safevlm.serve.console.account import as_dict
from safevlm.serve.console.commands import ChatSession, Leave, act, completed
from safevlm.serve.console.lines import Entry, LineReader
from safevlm.serve.console.partners import AS_USUAL, ChatPartner, Sampling
from safevlm.serve.console.screen import Screen
from safevlm.serve.console.speaking import speak
from safevlm.serve.console.transcript import ChatImage, Transcript

TOLD = (ValueError, OSError, ImportError, RuntimeError)
"""What ends a question or command and not the conversation; a GPU without memory is a RuntimeError."""
LEAVING = "Ctrl-C again, Ctrl-D or /quit leaves"


def ask(
    partner: ChatPartner,
    text: str,
    images: Sequence[ChatImage] = (),
    *,
    as_json: bool = False,
    sampling: Sampling = AS_USUAL,
    system: str = "",
) -> int:
    """Answers one question on stdout, as text or as one JSON object. Exit code 0, also for a refusal."""
    request = Transcript(system, list(images)).request(text)
    stream, screen = partner.ask(request, sampling), Screen()
    if screen.is_terminal and not as_json:
        if speak(stream, screen).is_stopped:
            raise KeyboardInterrupt
        return 0
    for _ in stream:  # a pipe gets the whole answer or none
        pass
    answer = stream.end()
    if answer is None:
        raise RuntimeError("the model gave no answer")
    print(json.dumps(as_dict(answer.reply), ensure_ascii=False) if as_json else answer.reply.text)
    return 0


def talk(
    partner: ChatPartner,
    images: Sequence[ChatImage] = (),
    *,
    sampling: Sampling = AS_USUAL,
    system: str = "",
) -> int:
    """The interactive conversation; ends with /quit, the end of input, or Ctrl-C twice at the prompt."""
    screen = Screen()
    reader = LineReader(screen, lambda line: completed(session.partner, line))
    session = ChatSession(partner, screen, reader.confirm, sampling, Transcript(system, list(images)))
    screen.line(f"{partner.title}. /help lists the commands.")
    presses = 0
    while presses < 2:
        try:
            entry = reader.read()
            presses = 0
            _step(session, entry)
        except Leave:
            break
        except EOFError:
            screen.line()
            break
        except KeyboardInterrupt:
            presses = _interrupted(reader, presses)
        except TOLD as error:
            screen.error(error)
    return 0


def _step(session: ChatSession, entry: Entry) -> None:
    if entry.is_command:
        act(session, entry.text)
    elif entry.text:
        session.ask(entry.text)


def _interrupted(reader: LineReader, presses: int) -> int:
    """Ctrl-C: how often it was pressed at the prompt, one after the other."""
    screen = reader.screen
    if not reader.is_reading:
        screen.line("stopped", "note")
        return 0
    if not screen.is_terminal:
        raise KeyboardInterrupt
    screen.line()
    if not presses:
        screen.note(LEAVING)
    return presses + 1
