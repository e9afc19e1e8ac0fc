"""The commands of a conversation: a table of what they are called, what they do, and how their words complete."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safevlm.data.atomic_write import write_new, write_text
from safevlm.data.sources.images import EXTENSIONS
from safevlm.paths import expanded
from safevlm.serve.console import completion
from safevlm.serve.console.partners import AS_USUAL, ChatAnswer, ChatPartner, Sampling
from safevlm.serve.console.screen import Screen
from safevlm.serve.console.speaking import speak
from safevlm.serve.console.transcript import ChatImage, Transcript
from safevlm.types import Request

YAML = (".yaml", ".yml")


class Leave(Exception):
    """The conversation is over."""


@dataclass
class ChatSession:
    """What a conversation knows between two lines of input."""

    partner: ChatPartner
    screen: Screen
    confirm: Callable[[str], bool]
    """Asks the user; False where nobody can answer."""
    sampling: Sampling = AS_USUAL
    transcript: Transcript = field(default_factory=Transcript)
    asked: Request | None = None
    """The last question that was answered, with all before it."""
    last: ChatAnswer | None = None
    """Its answer."""

    def ask(self, text: str) -> None:
        """Answers a question on the screen. Raises what cannot be asked; it is not kept then."""
        request = self.transcript.request(text)
        heard = speak(self.partner.ask(request, self.sampling), self.screen)
        if heard.answer is not None:
            self.asked, self.last = request, heard.answer
            self.transcript.keep(text, heard.answer, heard.is_stopped)


Run = Callable[[ChatSession, str], str]
"""What stands behind the command's name → what is told; ValueError, OSError: what is wrong with it."""
Completes = Callable[[ChatPartner, str], Sequence[str]]


def _nothing(partner: ChatPartner, line: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class ChatCommand:
    """One row."""

    usage: str
    """Words behind its name."""
    help: str
    run: Run
    completes: Completes = _nothing


def files(words: str) -> list[str]:
    """Paths in the quoting of a shell, `~` and `$NAME` put in; words that are one file's name need no quotes."""
    if os.path.isfile(os.path.expanduser(words)):
        return [os.path.expanduser(words)]
    try:
        return [expanded(word) for word in shlex.split(words)]
    except ValueError as error:
        raise ValueError(f"{words}: {error}; a quote in a name stands behind a backslash") from error


def one_file(words: str, usage: str) -> str:
    given = files(words)
    if len(given) != 1:
        raise ValueError(f"one file: {usage}; a name with spaces stands in quotes")
    return given[0]


def image(session: ChatSession, words: str) -> str:
    transcript = session.transcript
    if not words:
        transcript.forget()
        transcript.waiting.clear()
        return "no image; a new conversation"
    opened = [ChatImage.opened(path) for path in files(words)]  # all of them or none
    transcript.waiting += opened
    names = ", ".join(each.name for each in transcript.waiting)
    return f"looking at {names} with the next question"


def defense(session: ChatSession, words: str) -> str:
    if not words:
        known = session.partner.defenses()
        return "\n".join(
            [session.partner.title, *([f"known: {', '.join(known)}; several joined by +"] if known else [])]
        )
    session.partner = session.partner.behind(words, session.partner.policy)
    return session.partner.title


def policy(session: ChatSession, words: str) -> str:
    path = one_file(words, "/policy FILE") if words else None
    session.partner = session.partner.behind(session.partner.defense, path)
    return f"{session.partner.title}, policy {path or 'of the model'}"


def why(session: ChatSession, words: str) -> str:
    return "\n".join(session.last.account) if session.last is not None else "nothing was asked yet"


def compare(session: ChatSession, words: str) -> str:
    if session.asked is None or session.last is None:
        return "nothing was asked yet"
    bare = session.partner.behind("none", None)
    screen = session.screen
    screen.line(session.last.by, "title")
    screen.line(session.last.reply.text)
    screen.line(f"{bare.title}: the bare model", "title")
    speak(bare.ask(session.asked, session.sampling), screen)
    return ""


def save(session: ChatSession, words: str) -> str:
    if not session.transcript.turns:
        raise ValueError("nothing was said yet, so there is nothing to save")
    path, content = Path(one_file(words, "/save FILE")), session.transcript.as_json()
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name a file")
    if not write_new(path, content):
        if not session.confirm(f"{path} exists; overwrite it?"):
            raise ValueError(f"{path}: there is such a file, and it stays as it is; name another one")
        write_text(path, content)
    count = len(session.transcript.turns)
    return f"{count} {'answer' if count == 1 else 'answers'} in {path}"


def reset(session: ChatSession, words: str) -> str:
    session.transcript.forget()
    kept = len(session.transcript.waiting)
    return "forgotten" + (f"; {kept} {'image' if kept == 1 else 'images'} for the next question" if kept else "")


def leave(session: ChatSession, words: str) -> str:
    raise Leave


def tell_help(session: ChatSession, words: str) -> str:
    shown = {f"{name} {row.usage}".strip(): row.help for name, row in COMMANDS.items()}
    width = max(map(len, shown))
    return "\n".join([*(f"{usage:<{width}}  {said}" for usage, said in shown.items()), "", KEYS])


KEYS = """\
Several lines: paste them, or end a line with \\, or write them between two lines of \"\"\".
Ctrl-C stops an answer, and twice at the prompt leaves; so does Ctrl-D. Tab completes commands and paths."""

COMMANDS = {
    "/image": ChatCommand(
        "[FILE…]",
        "look at images with the next question; without a file: no images, and a new conversation",
        image,
        lambda partner, line: completion.paths(line, EXTENSIONS),
    ),
    "/defense": ChatCommand(
        "[NAME]",
        "the same model behind another defense; without a name: which ones there are",
        defense,
        lambda partner, line: completion.names(line, partner.defenses()),
    ),
    "/policy": ChatCommand(
        "[FILE]",
        "another policy; without a file: the model's own",
        policy,
        lambda partner, line: completion.paths(line, YAML),
    ),
    "/why": ChatCommand("", "what the guard saw in the last request, and what it did", why),
    "/compare": ChatCommand("", "the bare model's answer to the last question beside the guarded one", compare),
    "/save": ChatCommand(
        "FILE",
        "the conversation as JSON: OpenAI messages, and what the guard said of each answer",
        save,
        lambda partner, line: completion.paths(line),
    ),
    "/reset": ChatCommand("", "forget the conversation; its images stay for the next question", reset),
    "/help": ChatCommand("", "this text", tell_help),
    "/quit": ChatCommand("", "leave", leave),
}
OTHER_NAMES = {"/exit": "/quit"}


def act(session: ChatSession, line: str) -> None:
    """Does what a line that begins with `/` says."""
    word, _, words = line.partition(" ")
    row = COMMANDS.get(OTHER_NAMES.get(word, word))
    told = row.run(session, words.strip()) if row else f"unknown command {word}\n{tell_help(session, '')}"
    if told:
        session.screen.line(told)


def completed(partner: ChatPartner, line: str) -> Sequence[str]:
    """What a line can become; nothing where it is no command."""
    word, space, _ = line.partition(" ")
    if not line.startswith("/"):
        return ()
    if not space:
        return [f"{name} " if COMMANDS[name].usage else name for name in COMMANDS if name.startswith(word)]
    return COMMANDS[word].completes(partner, line) if word in COMMANDS else ()
