"""Which of several processes does what."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from safevlm.sharding import Share, alone, local_rank, locked, owned, share_of
from tests.holding import holding

NAMES = [f"request-{number}" for number in range(101)]


@pytest.mark.parametrize("flag", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0"])
def test_a_share_that_makes_no_sense_is_an_error(flag: str) -> None:
    with pytest.raises(ValueError, match="--shard"):
        share_of(flag)


def test_shares_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [share_of(f"{number}/3") for number in (1, 2, 3)]
    assert all(sum(share.owns(index) for share in shares) == 1 for index in range(20))
    assert sorted(item for share in shares for item in share.of(range(20))) == list(range(20))
    assert sorted(at for share in shares for at in share.of_named(NAMES)) == list(range(len(NAMES)))
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert share_of(None) == shares[2]


def test_what_one_process_left_undone_is_dealt_evenly_to_more() -> None:
    left = {NAMES[at] for at in Share(1, 2).of_named(NAMES)}
    counts = [sum(NAMES[at] in left for at in Share(rank, 4).of_named(NAMES)) for rank in range(4)]
    assert min(counts) >= len(left) // 4 - 7, f"{counts}: dealt in turn, two of them would have nothing to do"


def test_a_name_keeps_its_process() -> None:
    """Recorded numbers: under another digest, the processes of a stopped run would repeat each other."""
    assert Share(0, 3).of_named(NAMES[:12]) == [2, 3, 6, 10]


def test_the_launcher_says_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert local_rank() == 0, "the first GPU is a choice, not its absence"


def test_a_rank_is_free_again_afterwards(tmp_path: Path) -> None:
    for share in (Share(0, 2), Share(0, 2), Share(0, 1)):
        with owned(tmp_path / "out" / "lock", share):
            pass
    with locked(tmp_path / "out" / "other"):
        pass


def test_the_second_process_is_told_who_is_there_and_a_killed_one_locks_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / "out" / ".lock"
    with holding(lock) as holder:
        with pytest.raises(ValueError) as refused, alone(lock, lock.parent, "--run.out"):
            pass
        for part in (str(lock.parent), f"process {holder.pid} on {socket.gethostname()}", "--run.out"):
            assert part in str(refused.value)
        assert lock.exists(), "who is refused must not take the other's lock away"
    with alone(lock, lock.parent):
        pass


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    """Neither its file, nor a folder that was made for it alone; what was put there stays."""
    with alone(tmp_path / "new" / ".lock", tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with alone(tmp_path / "old" / ".lock", tmp_path / "old"):
        pass
    assert list((tmp_path / "old").iterdir()) == []
    with alone(tmp_path / "used" / ".lock", tmp_path / "used"):
        (tmp_path / "used" / "file").touch()
    assert [file.name for file in (tmp_path / "used").iterdir()] == ["file"]


@pytest.mark.parametrize("below", ["", "run", "runs/run"])
def test_a_file_in_the_place_of_the_folder_is_named_with_the_flag(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / below
    with pytest.raises(ValueError, match=rf"--run\.out: {place} .*a file"), alone(place / ".lock", place, "--run.out"):
        pytest.fail("it was held")
    with pytest.raises(ValueError, match=rf"--out: {place} .*a file"), owned(place / ".lock", Share()):
        pytest.fail("it was held")
