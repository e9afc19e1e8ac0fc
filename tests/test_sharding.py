"""Which of several processes does what."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.sharding import Share, local_rank, locked, owned, share_of

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
