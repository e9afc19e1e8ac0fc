"""Another process that holds a folder, by `safevlm.sharding` alone: it imports neither torch nor transformers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from safevlm.sharding import Share, alone, owned
lock, *place = sys.argv[1:]
with owned(Path(lock), Share(*map(int, place))) if place else alone(Path(lock), Path(lock).parent):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holding(lock: Path, *place: int) -> Iterator[subprocess.Popen[bytes]]:
    """Until it is killed, at the latest at the end. `place`: rank and number of processes; without, all of it."""
    words = [sys.executable, "-c", HOLD, str(lock), *map(str, place)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()
