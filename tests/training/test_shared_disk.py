"""Nodes that write to disks of their own are found out before a step is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safevlm.training import processes


def test_one_process_needs_nothing(tmp_path: Path) -> None:
    processes.check_shared_disk(tmp_path / "out", 0, 1)
    assert not (tmp_path / "out").exists()


def test_first_process_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    processes.check_shared_disk(tmp_path / "out", 0, 2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_process_with_a_disk_of_its_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(processes, "SECONDS", 0)
    with pytest.raises(ValueError, match="process 3 .*disk that all nodes share"):
        processes.check_shared_disk(tmp_path / "out", 3, 4)
