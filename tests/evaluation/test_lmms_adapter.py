"""lmms-eval asks the guarded model through the engine, and nothing of a request is lost on the way.

lmms-eval itself is heavy and optional: `harness` lays out the few names of it that the adapter touches.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torch import nn

from safevlm.evaluation.lmms import adapter
from safevlm.evaluation.lmms.adapter import Guarded, cut, generation_of, request_of, stops_of
from safevlm.types import Generation, Reply, Request, Verdict

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "checkpoints" / "miniature")
RED, BLUE = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))

BASE = """
import abc
from torch import nn

class lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...
    @abc.abstractmethod
    def generate_until(self, requests): ...
    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    def clean(self):
        for name, value in list(vars(self).items()):
            if isinstance(value, nn.Module):
                delattr(self, name)
"""
REGISTRY = """
from dataclasses import dataclass

@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()
"""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`safevlm.evaluation.lmms.model` beside the protocol as lmms-eval 0.7.3 has it."""
    for path, content in {"api/model.py": BASE, "models/registry_v2.py": REGISTRY}.items():
        file = tmp_path / "lmms_eval" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        (tmp_path / "lmms_eval" / "__init__.py").touch()
        file.write_text(content)
    ours = [
        name for name in sys.modules if name.partition(".")[0] == "lmms_eval" or name == "safevlm.evaluation.lmms.model"
    ]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("safevlm.evaluation.lmms.model")
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "lmms_eval" or name == "safevlm.evaluation.lmms.model"
    ]:
        del sys.modules[name]


class Recorder:
    """Stands where the engine stands and notes what it was given."""

    def __init__(self, **reply: Any) -> None:
        self.asked: list[tuple[Request, Any]] = []
        self.fields = reply

    def reply(self, request: Request, generation: Any) -> Reply:
        self.asked.append((request, generation))
        return Reply(**({"text": "one.\n\ntwo. ASSISTANT: three", "request": request} | self.fields))


def user(*parts: str | Image.Image) -> dict[str, Any]:
    kinds = [("text", "text") if isinstance(part, str) else ("image", "url") for part in parts]
    content = [{"type": kind, key: part} for (kind, key), part in zip(kinds, parts, strict=True)]
    return {"role": "user", "content": content}


def asked(row: int, options: dict[str, Any], messages: list[dict[str, Any]]) -> SimpleNamespace:
    """A request of the chat protocol."""
    return SimpleNamespace(args=("context", lambda doc: messages, options, row, "toy", "test"))


def test_the_manifest_names_a_class_that_is_a_chat_model(harness: ModuleType) -> None:
    (manifest,) = adapter.manifests()
    assert manifest.model_id == "safevlm"
    module, _, name = manifest.chat_class_path.rpartition(".")
    loaded = getattr(importlib.import_module(module), name)
    assert issubclass(loaded, sys.modules["lmms_eval.api.model"].lmms) and loaded.is_simple is False


def test_the_entry_point_is_declared() -> None:
    assert '"lmms_eval.models": ["safevlm = safevlm.evaluation.lmms.adapter:manifests"]' in (
        ROOT / "setup.py"
    ).read_text(encoding="utf-8")


def test_a_missing_harness_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delitem(sys.modules, "safevlm.evaluation.lmms.model", raising=False)
    with pytest.raises(ImportError, match=r"\.\[utility\]"):
        importlib.import_module("safevlm.evaluation.lmms.model")


@pytest.mark.slow
def test_a_task_is_asked_through_a_real_engine_in_order_and_the_model_outlives_the_clean_up(
    harness: ModuleType, tmp_path: Path
) -> None:
    from safevlm.engine import Engine

    log = str(tmp_path / "log.jsonl")
    model = harness.SafeVlm(MODEL, defense="static-prompt", device="cpu", batch_size="1", log=log)
    model.task_dict = {"toy": {"test": [{}, {}]}}
    requests = [
        asked(0, {"max_new_tokens": 12, "until": ["\n\n"]}, [user(RED, "What is in the picture?")]),
        asked(1, {"max_new_tokens": 12}, [user("How do I use the lamp?")]),
    ]
    replies = model.generate_until(requests)
    engine = Engine.load(MODEL, defense="static-prompt", device="cpu")
    straight = [Request("What is in the picture?", (RED,)), Request("How do I use the lamp?")]
    assert replies == [reply.text for reply in engine.reply_all(straight, Generation(max_new_tokens=12), batch_size=1)]
    model.clean()
    assert model.generate_until(requests) == replies
    assert not [value for value in vars(model).values() if isinstance(value, nn.Module)]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows[:2]] == ["toy:test:0", "toy:test:1"] and rows[0]["trace"]
    assert model.guarded.summary() == "4 asked, 0 refused by the defense, 4 with words added by it"


def test_every_image_and_every_word_reaches_the_engine_in_order() -> None:
    request = request_of([user(RED, "first", BLUE, "second")], "toy:0")
    assert (request.text, request.id, len(request.images)) == ("first\nsecond", "toy:0", 2)
    assert [image.getpixel((0, 0)) for image in request.images] == [(255, 0, 0), (0, 0, 255)]


def test_interleaved_images_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded(Recorder())
    with caplog.at_level(logging.WARNING):
        guarded.ask([user(RED, BLUE, "both")], {}, "toy:0")
        assert not caplog.records
        for _ in range(3):
            guarded.ask([user("A:", RED, "B:", BLUE)], {}, "toy:1")
    assert len(caplog.records) == 1 and "images first" in caplog.text


def test_a_dialogue_keeps_its_turns() -> None:
    says = {"role": "assistant", "content": [{"type": "text", "text": "a cup"}]}
    request = request_of([{"role": "system", "content": "be brief"}, user(RED, "what?"), says, user("sure?")], "t")
    assert (request.system, request.history, request.text) == ("be brief", (("what?", "a cup"),), "sure?")


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "not video"),
        ([{"role": "user", "content": [{"type": "image", "url": None}]}], "image of the request is missing"),
        ([{"role": "user", "content": [{"type": "image", "url": "gone.png"}]}], r"gone\.png"),
        ([{"role": "assistant", "content": "hm"}], "has no place"),
        ([], "does not end with a question"),
    ],
)
def test_what_the_model_cannot_read_is_an_error(messages: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        request_of(messages, "toy:0")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1024, 0.0, 1.0)),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False}, (16, 0.0, 1.0)),
        ({"temperature": 0.2, "do_sample": False}, (1024, 0.0, 1.0)),  # as mmvet has it: greedy
        ({"temperature": 0.7, "top_p": 0.9}, (1024, 0.7, 0.9)),
        ({"do_sample": True}, (1024, 1.0, 1.0)),
        ({"do_sample": True, "temperature": 0}, (1024, 0.0, 1.0)),
    ],
)
def test_a_tasks_options_become_the_engines(options: dict[str, Any], expected: tuple[int, float, float]) -> None:
    found = generation_of(options)
    assert (found["max_new_tokens"], found["temperature"], found["top_p"]) == expected


def test_beams_are_refused() -> None:
    with pytest.raises(ValueError, match="num_beams 5"):
        generation_of({"num_beams": 5}, "toy:0")


def test_the_harness_default_stop_does_not_cut_a_free_answer_but_a_tasks_own_does() -> None:
    text = "one.\n\ntwo. ASSISTANT: three"
    assert cut(text, stops_of({"until": ["\n\n"]})) == text
    assert cut(text, stops_of({"until": ["ASSISTANT:", "\n\n"]})) == "one.\n\ntwo."
    assert cut(text, stops_of({"until": "two"})) == "one."
    assert cut(text, stops_of({})) == text


def test_what_the_defense_did_is_counted_and_logged(tmp_path: Path) -> None:
    verdict = Verdict("must_refuse", "illegal", source="head")
    guarded = Guarded(Recorder(refused_by="safety-head", verdict=verdict), log_file=tmp_path / "log.jsonl")
    guarded.ask([user(RED, "what?")], {}, "toy:7")
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert (row["id"], row["refused_by"], row["level"]) == ("toy:7", "safety-head", "must_refuse")
    assert guarded.summary().startswith("1 asked, 1 refused")


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        adapter.load(MODEL)


def test_tasks_that_need_likelihoods_are_refused(harness: ModuleType) -> None:
    model = harness.SafeVlm.__new__(harness.SafeVlm)
    with pytest.raises(NotImplementedError, match="generating variant"):
        model.loglikelihood([])


@pytest.mark.skipif(not metadata.packages_distributions().get("lmms_eval"), reason="lmms-eval is not installed")
def test_the_installed_harness_finds_the_model() -> None:
    from lmms_eval.models import MODEL_REGISTRY_V2

    assert MODEL_REGISTRY_V2.get_model_class("safevlm").__name__ == "SafeVlm"
