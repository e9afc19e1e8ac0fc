"""A process that hangs is found and told where it stands; one that is slow is waited for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import patience

SLOW = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: sum(range(1000))"
HANGS = "import time\ndef a_lock_that_stays(): time.sleep(600)\na_lock_that_stays()"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLOW!r}])"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "IDLE", 1.5)


@pytest.mark.parametrize("code", [SLOW, CHILD], ids=["itself", "its child"])
def test_who_computes_is_waited_for(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "COMPUTES", (0.01, 0.0))  # this machine may be busy
    assert patience.run([sys.executable, "-c", code], tmp_path / "log", tmp_path) == (0, "")


def test_who_hangs_is_ended_and_says_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(patience.Hang, match="a_lock_that_stays"):
        patience.run([sys.executable, "-c", HANGS], tmp_path / "log", tmp_path)


def test_who_ends_before_it_has_done_its_work_is_told_apart(tmp_path: Path) -> None:
    process = patience.start([sys.executable, "-c", "pass"], tmp_path)
    with pytest.raises(AssertionError, match="ended too early"):
        patience.wait_until(lambda: False, process.pid, lambda: process.poll() is None)
