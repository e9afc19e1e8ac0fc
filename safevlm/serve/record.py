"""The decision record: JSONL, one line a request, no content. Only its owner can read it.

A line is written whole or not at all, also where the disk is full. The file may be moved away at any time; `reopen`
then begins another one.
"""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from safevlm.serve.settlement import Settlement, verdict_table

OWNER_ONLY = 0o600


class DecisionRecord:
    """One file, of one server."""

    name = "record"

    def __init__(self, path: Path) -> None:
        """OSError: it cannot be written."""
        self.path = path
        self._lock = Lock()
        self._file = self._opened()

    def keep(self, settled: Settlement) -> None:
        """Appends one line. OSError: it could not be written, and the file is as before."""
        content = (json.dumps(line_of(settled), ensure_ascii=False) + "\n").encode()
        with self._lock:
            before = os.fstat(self._file).st_size
            written = 0
            try:
                while written < len(content):
                    written += os.write(self._file, content[written:])
            except OSError:
                if written:
                    os.ftruncate(self._file, before)
                raise

    def reopen(self) -> None:
        """After the file was moved away. OSError: the one before stays open."""
        opened = self._opened()
        with self._lock:
            before, self._file = self._file, opened
        os.close(before)

    def close(self) -> None:
        with self._lock:
            os.close(self._file)
            self._file = os.open(os.devnull, os.O_WRONLY)

    def _opened(self) -> int:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)
        if stat.S_ISREG(os.fstat(file).st_mode):
            os.fchmod(file, OWNER_ONLY)
        return file


def line_of(settled: Settlement) -> dict[str, object]:
    """One line of the file."""
    time = datetime.fromtimestamp(settled.began, UTC).isoformat(timespec="milliseconds")
    verdict = None if settled.verdict is None else verdict_table(settled.verdict)
    return {
        "time": time.replace("+00:00", "Z"),
        "id": settled.id,
        "key": settled.key,
        "verdict": verdict,
        "action": settled.action,
        "policy": settled.policy,
        **({"monitor": True, "would_refuse": settled.would_refuse} if settled.is_monitor else {}),
        "images": list(settled.images),
        **({"output": settled.output} if settled.output is not None else {}),
    }
