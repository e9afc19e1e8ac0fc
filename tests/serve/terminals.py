"""A pseudo-terminal with a command in it, and hands and eyes for it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from tests.patience import wait_until

INSIDE = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["safevlm", *sys.argv[1:]]
runpy.run_module("safevlm", run_name="__main__")
"""
"""Makes the pseudo-terminal the process's own, so that Ctrl-C typed there is a signal, and has the signal heeded: tests
that run in a shell's background inherit that it is not."""
INTERRUPT, END = "\x03", "\x04"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class PseudoTerminal:
    """What is typed into it, and what is seen."""

    def __init__(self, words: Sequence[str], cwd: Path, **environment: str) -> None:
        self._own, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", INSIDE, *words],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=cwd,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment},
            start_new_session=True,
        )
        os.close(inner)
        self.seen = ""
        self._read_to = 0
        self._eyes = Thread(target=self._look, daemon=True)
        self._eyes.start()

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def see(self, text: str) -> str:
        """Waits for a text behind the one that was waited for last; what came up to it, without escapes."""
        wait_until(lambda: text in self.seen[self._read_to :], self.process.pid, self._is_alive)
        end = self.seen.index(text, self._read_to) + len(text)
        shown, self._read_to = self.seen[self._read_to : end], end
        return ESCAPES.sub("", shown)

    def ends(self) -> int:
        """Its exit code."""
        wait_until(lambda: self.process.poll() is not None, self.process.pid)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._eyes.join(5)
        os.close(self._own)

    def _is_alive(self) -> bool:
        return self.process.poll() is None or self._eyes.is_alive()

    def _look(self) -> None:
        while True:
            try:
                read = os.read(self._own, 4096)
            except OSError:  # the other end is closed
                return
            if not read:
                return
            self.seen += read.decode(errors="replace")


@contextmanager
def terminal(words: Sequence[str], cwd: Path, **environment: str) -> Iterator[PseudoTerminal]:
    made = PseudoTerminal(words, cwd, **environment)
    try:
        yield made
    except AssertionError as error:
        time.sleep(0.2)
        raise AssertionError(f"{error}\n--- the terminal ---\n{made.seen[-3000:]}") from error
    finally:
        made.close()
