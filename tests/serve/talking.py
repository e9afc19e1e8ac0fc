"""A conversation whose lines are typed by a test, and what was printed for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest

from safevlm.commands import OK
from safevlm.serve import chat_cli
from safevlm.serve.console.partners import ChatPartner, Sampling
from safevlm.serve.console.transcript import ChatImage

Talk = Callable[..., list[str]]


def typing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Types lines, then Ctrl-D; what was printed for each line, after the greeting. An exception in place of a line is
    raised at the prompt."""

    def talk(
        partner: ChatPartner,
        lines: Iterable[str | BaseException],
        images: Sequence[str] = (),
        sampling: Sampling = chat_cli.AS_USUAL,
        system: str = "",
    ) -> list[str]:
        left, printed, typed = iter(lines), list[str](), list[str]()

        def read(prompt: str = "") -> str:
            printed.append(capsys.readouterr().out)
            try:
                line = next(left)
            except StopIteration:
                raise EOFError from None
            typed.append(str(line))
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        opened = [ChatImage.opened(image) for image in images]
        assert chat_cli.talk(partner, opened, sampling=sampling, system=system) == OK
        assert not list(left), "the conversation ended before its last line"
        return [*printed[1:], capsys.readouterr().out][: len(typed)]

    return talk
