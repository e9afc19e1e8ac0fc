"""Commands and server on a guarded checkpoint of each family: check, audit, analyze, eval, chat, clients' requests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safevlm.__main__ import main
from safevlm.engine import load
from safevlm.model import export, loading
from safevlm.types import Generation, Request
from tests.backbones import families
from tests.serve.serving import asked, serving

each_family = families.few(telling=(*families.QUICK, "paligemma"))


def _guarded(family: str, place: Path) -> Path:
    """A stock folder with an untrained guard beside it."""
    torch.manual_seed(1)
    loaded = loading.load(families.saved(family, place / "stock"), safety=replace(families.SAFETY, lm_tokens=0))
    with torch.no_grad():  # opinions far apart, so that rounding decides nothing
        loaded.model.safety_head.category.weight.mul_(1e3)
        loaded.model.safety_head.level.weight.mul_(1e3)
    (place / "guarded").mkdir()
    export.write(loaded.model, loaded.processor, place / "guarded", "stock")
    return place / "guarded"


def _records(place: Path) -> Path:
    rows = []
    for index in range(4):
        families.image(index, 24, 20 + 6 * index).save(place / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A thing."}]
        label = {"safe_type": ("clean", "illegal")[index % 2], "safe_level": ("safe", "careful")[index % 2]}
        rows.append({"id": str(index), "image": f"{index}.png", "conversations": turns, **label})
    (place / "records.json").write_text(json.dumps(rows), encoding="utf-8")
    return place / "records.json"


def _suite(place: Path) -> Path:
    """A question about each image of the records, and how it is judged."""
    rows = [{"id": str(index), "question": "What is it?", "image": f"{index}.png"} for index in range(4)]
    (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    suite = {"name": "own", "file": "questions.jsonl", "side": "harmful", "judge": "refusal", "max_new_tokens": 4}
    (place / "own.yaml").write_text(json.dumps(suite), encoding="utf-8")
    return place / "own.yaml"


def _run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.slow
@each_family
def test_commands_read_a_guarded_checkpoint(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = _guarded(family, tmp_path), _records(tmp_path)
    assert _run("check", model) == 0, capsys.readouterr().out
    assert _run("audit", data, "--model", model, "--out", tmp_path / "audit", "--device", "cpu") == 0
    audited = json.loads((tmp_path / "audit" / "summary.json").read_text(encoding="utf-8"))
    assert _run("analyze", "head", "--model", model, "--data", data, "--out", tmp_path / "head", "--device", "cpu") == 0
    verdicts = [load(model, device="cpu").look(Request("?", images=(str(tmp_path / f"{n}.png"),))) for n in range(4)]
    assert audited["images"] == 4
    seen = ["clean" if verdict.level == "safe" else verdict.category for verdict in verdicts]
    counts = {name: seen.count(name) for name in audited["category"]}
    assert counts == audited["category"], "the audit sees what the engine sees"
    asked_at = ("--suite", _suite(tmp_path), "--model", model, "--out", tmp_path / "run", "--device", "cpu")
    assert _run("eval", "ask", *asked_at, "--defense", "safety-head", "--batch-size", "4") == 0
    replies = (tmp_path / "run" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    levels = {row["id"]: row["verdict"]["level"] for row in map(json.loads, replies)}
    assert levels == {str(number): verdict.level for number, verdict in enumerate(verdicts)}, "a suite sees it too"
    capsys.readouterr()
    assert _run("chat", "--model", model, "--image", tmp_path / "0.png", "--ask", "What is it?", "--json") == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert said["verdict"]["level"] == verdicts[0].level and not said["verdict"]["error"]


@each_family
def test_a_client_gets_what_the_engine_says(family: str, tmp_path: Path) -> None:
    engine = load(_guarded(family, tmp_path), defense="none", device="cpu")
    image = families.image(0)
    with serving(engine) as served, served.client() as client:
        made = client.chat.completions.create(
            model="tiny", messages=[asked("What is it?", image)], max_tokens=6, temperature=0
        )
    said = engine.reply(Request("What is it?", images=(image,)), Generation(max_new_tokens=6))
    assert made.choices[0].message.content == said.text
