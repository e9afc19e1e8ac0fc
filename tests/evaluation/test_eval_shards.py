"""Several processes make one run: the same replies, no duplicate, no gap, whoever dies and however many go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from safevlm.__main__ import main
from safevlm.evaluation.runs import shards
from safevlm.evaluation.runs.ask import ask, missing
from safevlm.evaluation.runs.files import read_replies
from safevlm.evaluation.suites.miniature import load
from safevlm.sharding import Share
from tests import forked, patience
from tests.evaluation.world_of_runs import Parrot, helpful, write_suite
from tests.holding import holding

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "checkpoints" / "miniature"
SUITE = "miniature"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data", per_group=7)


def rows(out: Path) -> list[dict]:
    return [row for row in read_replies(out) if row.pop("seconds") >= 0]


def ids(data: Path) -> list[str]:
    return [sample.request.id for sample in load(data)]


def start(data: Path, out: Path, shard: str, dies_after: int | None = None) -> Parrot:
    """One process's work, in this one."""
    parrot = Parrot(helpful, dies_after=dies_after)
    try:
        ask(SUITE, data, "m", "none", out, batch_size=2, shard=shard, engine=parrot)
    except KeyboardInterrupt:
        assert dies_after is not None
    return parrot


def test_three_processes_write_what_one_writes(tmp_path: Path, data: Path) -> None:
    ask(SUITE, data, "m", "none", tmp_path / "one", engine=Parrot(helpful))
    asked = [start(data, tmp_path / "three", f"{number}/3").asked for number in (2, 1, 3)]
    assert sorted(map(len, asked)) == [14, 14, 14], "every process has the same work"
    assert rows(tmp_path / "three") == rows(tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "three").glob("replies*")) == ["replies.jsonl"]


def test_nothing_is_joined_before_all_is_there(tmp_path: Path, data: Path) -> None:
    start(data, tmp_path / "out", "1/2")
    assert not (tmp_path / "out" / "replies.jsonl").exists()
    assert missing(tmp_path / "out") == (21, [])
    start(data, tmp_path / "out", "2/2")
    assert missing(tmp_path / "out") == (0, [])


@pytest.mark.parametrize("seed", range(8))
def test_any_death_and_any_other_number_of_processes_leave_no_duplicate_and_no_gap(
    tmp_path: Path, data: Path, seed: int
) -> None:
    dice, out, asked = random.Random(seed), tmp_path / "out", []
    for world in dice.sample(range(1, 6), 3):
        for rank in dice.sample(range(world), dice.randint(1, world)):
            parrot = start(data, out, f"{rank + 1}/{world}", dies_after=dice.randint(0, 2))
            asked += parrot.asked
            torn = shards.file_of(out, Share(rank, world))
            if torn.exists() and (out / "run.json").exists():
                with torn.open("a") as file:
                    file.write('{"id": "harm')
    world = dice.randint(1, 5)
    for rank in range(world):
        asked += start(data, out, f"{rank + 1}/{world}").asked
    assert [row["id"] for row in read_replies(out)] == ids(data)
    assert sorted(asked) == sorted(ids(data)), "no request is asked twice"


@pytest.mark.parametrize("worlds", [(2, 4), (3, 6), (4, 2), (8, 2)])
def test_what_a_dead_process_left_is_shared_by_all(worlds: tuple[int, int], tmp_path: Path) -> None:
    samples = load(write_suite(tmp_path / "data", per_group=60))
    left = {sample.request.id for sample in shards.portion(samples, Share(worlds[0] - 1, worlds[0]))}
    takes = [
        sum(sample.request.id in left for sample in shards.portion(samples, Share(rank, worlds[1])))
        for rank in range(worlds[1])
    ]
    assert sum(takes) == len(left)
    assert min(takes) > len(left) / worlds[1] / 3, f"the work of the dead process is dealt out as {takes}"


def test_a_line_that_another_process_is_writing_is_passed_over_and_left_alone(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    start(data, out, "2/2", dies_after=1)
    other = out / "replies.1.jsonl"
    with other.open("a") as file:
        file.write('{"id": "half')
    start(data, out, "1/2")
    assert other.read_text().endswith('{"id": "half')
    assert not (out / "replies.jsonl").exists()


def test_one_start_of_several_processes_is_noted_once(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    for shard in ("2/2", "1/2"):
        start(data, out, shard, dies_after=1)
    assert "resumed" not in json.loads((out / "run.json").read_text()), "a first start is no resume"
    for shard in ("2/2", "1/2"):
        start(data, out, shard)
    record = json.loads((out / "run.json").read_text())
    assert (len(record["resumed"]), record["processes"], record["n"]) == (1, 2, 42)


def test_a_crash_between_joining_and_tidying_up_is_mended(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    start(data, out, "1/2")
    left = (out / "replies.0.jsonl").read_bytes()
    start(data, out, "2/2")
    (out / "replies.0.jsonl").write_bytes(left)
    assert start(data, out, "1/1").calls == 0
    assert [row["id"] for row in read_replies(out)] == ids(data)
    assert not (out / "replies.0.jsonl").exists()


def test_two_processes_cannot_have_the_same_place(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    with holding(out / shards.OWNERS, 2, 3) as holder:
        for shard in ("3/3", "2/2", "1/1"):  # the same place; and runs that have no third process
            with pytest.raises(ValueError, match=f"another process works here .process {holder.pid} on "):
                start(data, out, shard)
        assert start(data, out, "1/3").calls > 0
    assert start(data, out, "3/3").calls > 0, "a dead process holds nothing"


def test_a_served_model_is_asked_by_one_process(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="without torchrun"):
        ask(SUITE, data, "http://127.0.0.1:1/v1#m", "none", tmp_path / "out", shard="1/2")


def command(data: Path, out: Path, *words: str) -> list[str]:
    return ["eval", "ask", "--data", str(data), "--model", str(MODEL), "--out", str(out), "--device", "cpu", *words]


def wait_until(condition: Callable[[], bool], process: forked.Forked | subprocess.Popen[bytes]) -> None:
    patience.wait_until(condition, process.pid, lambda: process.poll() is None)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_kill_9_of_one_then_of_all_then_another_number_of_real_processes(tmp_path: Path) -> None:
    data = write_suite(tmp_path / "data", per_group=40)
    assert main(command(data, tmp_path / "one", "--batch-size", "40")) == 0
    out = tmp_path / "many"

    first, second = (
        forked.command(command(data, out, "--shard", f"{number}/2", "--batch-size", "1")) for number in (1, 2)
    )
    wait_until(lambda: lines(out / "replies.1.jsonl") >= 3, second)
    second.kill()  # one of two
    wait_until(lambda: lines(out / "replies.0.jsonl") >= 20, first)
    first.kill()  # and the other
    first.wait(), second.wait()

    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3", "--master_port", "0"]
    third = patience.start([*launch, "-m", "safevlm", *command(data, out, "--batch-size", "1")], ROOT)
    wait_until(lambda: lines(out / "replies.2.jsonl") >= 3, third)
    workers = psutil.Process(third.pid).children(recursive=True)  # in sessions of their own
    os.killpg(third.pid, signal.SIGKILL)  # the launcher, and its three
    for worker in workers:
        worker.kill()
    third.wait(), psutil.wait_procs(workers)
    before = shards.read_all(out)
    assert 26 <= len(before) < 240

    assert main(command(data, out, "--batch-size", "16")) == 0
    assert [row["id"] for row in read_replies(out)] == ids(data)
    assert {row["id"]: row["reply"] for row in rows(out)} == {row["id"]: row["reply"] for row in rows(tmp_path / "one")}
    kept = {row["id"]: row for row in read_replies(out)}
    assert all(kept[name] == row for name, row in before.items()), "what was there stays as it was"
    assert not list(out.glob("replies.*.jsonl"))
