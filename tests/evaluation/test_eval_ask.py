"""Asking: every request once, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from safevlm.evaluation.runs import ask as asking
from safevlm.evaluation.runs.ask import ask, spread
from safevlm.evaluation.runs.files import read_replies
from safevlm.evaluation.suites.miniature import load
from tests.engine import engines
from tests.evaluation.world_of_runs import Parrot, helpful, refusing, write_rows, write_suite

SUITE = "miniature"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data")


def ids(out: Path) -> list[str]:
    return [row["id"] for row in read_replies(out)]


def test_a_reply_row_holds_request_reply_verdict_and_truth(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    assert ask(SUITE, data, "m", "none", out, engine=Parrot(refusing, source="head")) == 18
    row = read_replies(out)[0]
    assert row["truth"] == {"category": "politics", "level": "must_refuse", "task": "use", "things": ["vork"]}
    assert row["verdict"]["source"] == "head"
    assert (out / row["request"]["images"][0]).is_file(), "images are named from the run's folder"
    record = json.loads((out / "run.json").read_text())
    promised = {"model", "defense", "suite", "data", "versions", "seed", "batch_size", "dtype", "started", "command"}
    assert promised <= set(record)
    assert (record["n"], record["dtype"]) == (18, "torch.float32")


def test_batches_hold_prompts_of_like_length_and_replies_stand_in_the_order_of_the_suite(
    tmp_path: Path, data: Path
) -> None:
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row["question"] = "What is it?" + " Say." * (7 * index % len(rows))
    write_rows(data, rows)
    suite, parrot = load(data), Parrot(helpful)
    assert ask(SUITE, data, "m", "none", tmp_path / "out", batch_size=4, engine=parrot) == len(suite)
    prompts = {sample.request.id: (len(sample.request.images), len(sample.request.text)) for sample in suite}
    asked = [prompts[name] for name in parrot.asked]
    assert asked == sorted(asked, reverse=True) and len(set(asked)) > 4
    assert ids(tmp_path / "out") == [sample.request.id for sample in suite] != parrot.asked


@pytest.mark.parametrize("torn", ["", '{"id": "harm', '{"id": "x"}'])
def test_resume_leaves_no_duplicate_and_no_gap(tmp_path: Path, data: Path, torn: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        ask(SUITE, data, "m", "none", out, batch_size=4, engine=Parrot(helpful, dies_after=2))
    with (out / "replies.jsonl").open("a") as file:
        file.write(torn)
    assert json.loads((out / "run.json").read_text())["n"] == 18
    second = Parrot(helpful)
    assert ask(SUITE, data, "m", "none", out, batch_size=4, engine=second) == 10
    assert ids(out) == [sample.request.id for sample in load(data)]
    assert set(second.asked).isdisjoint(ids(out)[:8])
    assert len(json.loads((out / "run.json").read_text())["resumed"]) == 1


def test_an_image_that_cannot_be_read_is_named_and_partial_goes_on_without_it(tmp_path: Path, data: Path) -> None:
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text().splitlines()]
    rows[4]["image"] = "broken.png"
    write_rows(data, rows)
    (data / "broken.png").write_bytes(b"no image")
    engine = engines.engine("none")
    with pytest.raises(ValueError, match=rf"{rows[4]['id']}.*broken\.png.*--partial"):
        ask(SUITE, data, "m", "none", tmp_path / "a", max_new_tokens=1, engine=engine)
    out = tmp_path / "b"
    assert ask(SUITE, data, "m", "none", out, max_new_tokens=1, batch_size=8, partial=True, engine=engine) == 17
    left, failed = asking.missing(out)
    assert left == 1 and [(row["id"], row["kind"]) for row in failed] == [(rows[4]["id"], "unusable")]
    assert rows[4]["id"] not in ids(out)


def test_a_finished_run_is_not_asked_again(tmp_path: Path, data: Path) -> None:
    ask(SUITE, data, "m", "none", tmp_path / "out", engine=Parrot(helpful))
    again = Parrot(helpful)
    assert ask(SUITE, data, "m", "none", tmp_path / "out", engine=again) == 0
    assert again.calls == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "other"}, "model 'm', not 'other'"),
        ({"defense": "safety-head"}, "defense 'none'"),
        ({"policy": "strict.yaml"}, "policy None"),
        ({"max_new_tokens": 8}, "max_new_tokens 64"),
        ({"seed": 7}, "seed 0, not 7"),
        ({"defense": "safety-head", "model": "other"}, "defense 'none', not 'safety-head'; of model 'm'"),
    ],
)
def test_resume_with_another_model_or_defense_is_refused(tmp_path: Path, data: Path, change: dict, field: str) -> None:
    asked = {"suite": SUITE, "data": data, "model": "m", "defense": "none", "out": tmp_path / "out"}
    ask(**asked, engine=Parrot(helpful))
    with pytest.raises(ValueError, match=rf"run\.json: .*{field}.*another --out"):
        ask(**(asked | change), engine=Parrot(helpful))


def test_resume_with_other_data_or_other_weights_is_refused(tmp_path: Path, data: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"first")
    ask(SUITE, data, model, "none", tmp_path / "out", engine=Parrot(helpful))
    (model / "model.safetensors").write_bytes(b"trained again")
    with pytest.raises(ValueError, match=r"model \(its content\)"):
        ask(SUITE, data, model, "none", tmp_path / "out", engine=Parrot(helpful))
    (model / "model.safetensors").write_bytes(b"first")
    write_suite(data, per_group=2)
    with pytest.raises(ValueError, match=r"samples \(its content\)"):
        ask(SUITE, data, model, "none", tmp_path / "out", engine=Parrot(helpful))


def test_replies_without_a_run_file_are_not_added_to(tmp_path: Path, data: Path) -> None:
    ask(SUITE, data, "m", "none", tmp_path / "out", engine=Parrot(helpful))
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run\.json"):
        ask(SUITE, data, "m", "none", tmp_path / "out", engine=Parrot(helpful))


def test_a_limit_takes_the_groups_in_turn(tmp_path: Path, data: Path) -> None:
    samples = load(data)
    assert [sample.group for sample in spread(samples, 6)] == list(dict.fromkeys(sample.group for sample in samples))
    assert spread(samples, None) == samples == spread(samples, 1000)
    with pytest.raises(ValueError, match="--limit"):
        spread(samples, 0)


def test_a_raised_limit_goes_on(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    assert ask(SUITE, data, "m", "none", out, limit=6, engine=Parrot(helpful)) == 6
    assert ask(SUITE, data, "m", "none", out, engine=Parrot(helpful)) == 12
    assert len(set(ids(out))) == 18


def test_a_reply_is_as_long_as_the_suite_says_unless_told_otherwise(tmp_path: Path, data: Path) -> None:
    for out, given, written in (("own", None, 64), ("told", 5, 5)):
        ask(SUITE, data, "m", "none", tmp_path / out, max_new_tokens=given, engine=Parrot(helpful))
        assert json.loads((tmp_path / out / "run.json").read_text())["max_new_tokens"] == written


def test_a_run_does_not_go_on_in_another_precision(tmp_path: Path, data: Path) -> None:
    ask(SUITE, data, "m", "none", tmp_path / "out", limit=6, engine=Parrot(helpful))
    half = Parrot(helpful)
    half.model = SimpleNamespace(dtype="torch.bfloat16")
    with pytest.raises(ValueError, match=r"dtype 'torch\.float32', not 'torch\.bfloat16'"):
        ask(SUITE, data, "m", "none", tmp_path / "out", engine=half)


def test_every_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert asking._own("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    expected = {"auto": "cuda:3", "cuda": "cuda:3", "cuda:1": "cuda:1", "cpu": "cpu"}
    assert {device: asking._own(device) for device in expected} == expected


def test_a_reply_to_another_request_is_an_error(tmp_path: Path, data: Path) -> None:
    class Swapped(Parrot):
        def reply_all(self, requests, *how, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
            return super().reply_all(requests, *how, **options)[::-1]

    with pytest.raises(ValueError, match="was asked"):
        ask(SUITE, data, "m", "none", tmp_path / "out", engine=Swapped(helpful))
    write_rows(data, [])
