"""`safevlm pair`: the bare model answers what is its own, a stopped build goes on, and training reads the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from safevlm.__main__ import main
from safevlm.data.answers import HEAD_ONLY
from safevlm.data.pairs import Counts
from safevlm.data.records import Record, RecordError, read_records
from safevlm.defenses import prompts
from safevlm.engine import Engine
from safevlm.model import loading
from safevlm.taxonomy import DEFAULT
from safevlm.training import base_model_answers, pair_build
from safevlm.training.base_model_answers import AnswerOptions
from safevlm.training.pair_build import PairSettings
from safevlm.types import Generation, Request
from tests.training import workshop

pytestmark = pytest.mark.slow

COUNTS = Counts(malicious=4, contrastive=4, benign=3)
TOKENS = 5
REFUSED = base_model_answers.BaseModelAnswer("I cannot help with that.", is_cut=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, a tiny stock LLaVA, and `data/train.jsonl` of 24 risky and 12 clean records."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    made = workshop.rows(home / "data", 36)
    workshop.save_rows(home / "data" / "train.jsonl", made)
    return home


def _settings(home: Path, out: Path, **changes: Any) -> PairSettings:
    asking = AnswerOptions(str(home / "base"), batch_size=2, max_new_tokens=TOKENS, device="cpu")
    fields = {"records": [home / "data" / "train.jsonl"], "out": out, "asking": asking, "counts": COUNTS, **changes}
    return PairSettings(**fields)


def _build(home: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return pair_build.build(_settings(home, out, **changes), is_refusal=lambda text: False)


def _records(out: Path) -> list[Record]:
    return read_records([out / pair_build.PAIRS], DEFAULT)


def _said(record: Record) -> tuple[str, str]:
    question, answer = record.messages
    return question["content"][-1]["text"], answer["content"][0]["text"]


def _part(out: Path, part: str) -> list[Record]:
    return [record for record in _records(out) if record.part == part]


def _interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """The engine is killed after so many batches; sizes of the batches that it answered."""
    answered: list[int] = []
    reply_all = Engine.reply_all

    def dying(self: Engine, requests: Sequence[Request], *how: Any, **options: Any) -> Any:
        if len(answered) == after:
            raise KeyboardInterrupt
        answered.append(len(requests))
        return reply_all(self, requests, *how, **options)

    monkeypatch.setattr(Engine, "reply_all", dying)
    return answered


def test_own_answers_are_the_bare_models_greedy_ones(home: Path, tmp_path: Path) -> None:
    _build(home, tmp_path)
    engine = Engine.load(home / "base", defense="none", device="cpu")
    for record in [*_part(tmp_path, "contrastive"), *_part(tmp_path, "benign")]:
        question, answer = _said(record)
        assert answer == engine.reply_all([Request(question, record.images)], Generation(max_new_tokens=TOKENS))[0].text


def test_malicious_records_are_refused_by_their_category(home: Path, tmp_path: Path) -> None:
    _build(home, tmp_path)
    for record in _part(tmp_path, "malicious"):
        assert _said(record)[1] == prompts.refusal(DEFAULT, DEFAULT.category_names[record.safe_type or 0])


def test_malicious_records_may_keep_their_own_answers(home: Path, tmp_path: Path) -> None:
    _build(home, tmp_path, refusals="record")
    own = {record.images: _said(record)[1] for record in read_records([home / "data" / "train.jsonl"], DEFAULT)}
    assert {_said(record)[1] == own[record.images] for record in _part(tmp_path, "malicious")} == {True}


def test_placeholder_is_no_refusal(home: Path, tmp_path: Path) -> None:
    made = [json.loads(line) for line in (home / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in made:
        row["conversations"][1]["value"] = HEAD_ONLY
    file = workshop.save_rows(home / "data" / "silent.jsonl", made)
    with pytest.raises(RecordError, match=r"silent\.jsonl:\d+: no answer"):
        _build(home, tmp_path, records=[file], refusals="record")


def test_report_says_what_is_in_the_file_and_what_is_not(home: Path, tmp_path: Path) -> None:
    report = pair_build.build(_settings(home, tmp_path, seed=7), is_refusal=lambda text: True)
    assert json.loads((tmp_path / pair_build.REPORT).read_text(encoding="utf-8")) == report
    assert report["counts"] == {"malicious": 4, "contrastive": 4, "benign": 3}
    assert report["questions"]["malicious"] == report["questions"]["contrastive"]
    assert report["own_answers"]["asked"] == {"malicious": 0, "contrastive": 4, "benign": 3}
    assert report["own_answers"]["refusals"] == {"malicious": 0, "contrastive": 4, "benign": 3}, "kept, and counted"
    assert sum(report["own_answers"]["cut"].values()) >= 6, "the talk of random weights does not end by itself"
    assert sum(report["left_out"].values()) == 36 - 11
    assert (report["seed"], report["refusals"], report["model"]) == (7, "policy", str(home / "base"))


def test_stopped_build_goes_on_where_it_was(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _build(home, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupted(patch, after=2)
        _build(home, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / pair_build.PAIRS).exists()
    with (tmp_path / "stopped" / base_model_answers.FILE).open("a", encoding="utf-8") as file:
        file.write('{"id": "benign/0001')  # the line that the kill cut short
    with monkeypatch.context() as patch:
        answered = _interrupted(patch, after=99)
        _build(home, tmp_path / "stopped")
    assert sum(answered) == 7 - 2 * 2, "what was answered is not asked again"
    assert workshop.file_bytes(tmp_path / "stopped") == workshop.file_bytes(tmp_path / "whole")


def test_build_that_was_killed_within_its_first_line_starts_anew(home: Path, tmp_path: Path) -> None:
    (tmp_path / base_model_answers.FILE).write_text('{"weights": "', encoding="utf-8")
    assert _build(home, tmp_path)["counts"]["benign"] == 3


def test_finished_build_asks_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _build(home, tmp_path)
    before = workshop.file_bytes(tmp_path)
    answered = _interrupted(monkeypatch, after=0)
    _build(home, tmp_path)
    assert answered == [] and workshop.file_bytes(tmp_path) == before


def test_another_draw_takes_no_answer_to_another_question(home: Path, tmp_path: Path) -> None:
    """Images stay, their questions change with the seed: an answer found by its id alone would be a wrong one."""
    _build(home, tmp_path / "a", seed=1)
    for seed in (2, 3):
        with pytest.raises(ValueError, match=rf"pairs.json: made of something else: seed \d -> {seed}"):
            _build(home, tmp_path / "a", seed=seed)
        (tmp_path / "a" / pair_build.REPORT).unlink()  # the answers stay
        _build(home, tmp_path / "a", seed=seed)
        _build(home, tmp_path / f"{seed}", seed=seed)
        assert _records(tmp_path / "a") != []
        assert (tmp_path / "a" / pair_build.PAIRS).read_text() == (tmp_path / f"{seed}" / pair_build.PAIRS).read_text()


@pytest.mark.parametrize("other", ["weights", "length"])
def test_two_models_answers_never_share_a_folder(home: Path, tmp_path: Path, other: str) -> None:
    _build(home, tmp_path / "out")
    workshop.stock(seed=5).save_pretrained(tmp_path / "other")
    workshop.processor().save_pretrained(tmp_path / "other")
    changed = {
        "weights": AnswerOptions(str(tmp_path / "other"), max_new_tokens=TOKENS),
        "length": AnswerOptions(str(home / "base"), max_new_tokens=TOKENS + 1),
    }
    key = {"weights": "weights", "length": "max_new_tokens"}[other]
    with pytest.raises(ValueError, match=rf"pairs\.json: made of something else: {key} "):
        _build(home, tmp_path / "out", asking=changed[other])
    (tmp_path / "out" / pair_build.REPORT).unlink()  # a build that was stopped has none yet
    with pytest.raises(ValueError, match=r"answers\.jsonl: answers of another model"):
        _build(home, tmp_path / "out", asking=changed[other])


def _mute(folder: Path) -> Path:
    """A model whose every token is padding."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(folder)
    return folder


def test_empty_own_answers_are_dropped_and_counted(tmp_path: Path, home: Path) -> None:
    mute = _mute(workshop.stock_folder(tmp_path / "mute"))
    report = _build(home, tmp_path / "out", asking=AnswerOptions(str(mute), max_new_tokens=TOKENS))
    assert report["counts"] == {"malicious": 4, "contrastive": 0, "benign": 0}
    assert report["left_out"]["empty answer"] == 7
    assert {record.part for record in _records(tmp_path / "out")} == {"malicious"}


def test_guard_of_the_model_does_not_answer(home: Path, tmp_path: Path) -> None:
    """Own answers are the model's, though a head that sees risk everywhere stands in front of it."""
    loaded = loading.load(home / "base", safety=workshop.recipe(home, home, home).model.safety)
    torch.nn.init.constant_(loaded.safe_llava.safety_head.level.bias, 0.0)
    with torch.no_grad():
        loaded.safe_llava.safety_head.level.bias[3] = loaded.safe_llava.safety_head.category.bias[1] = 99.0
    loaded.model.save_pretrained(tmp_path / "guarded")
    loaded.processor.save_pretrained(tmp_path / "guarded")
    _build(home, tmp_path / "out", asking=AnswerOptions(str(tmp_path / "guarded"), max_new_tokens=TOKENS))
    bare = Engine.load(tmp_path / "guarded", defense="none", device="cpu")
    guarded = Engine.load(tmp_path / "guarded", device="cpu")
    (record, *_) = _part(tmp_path / "out", "benign")
    question, answer = _said(record)
    asked = [Request(question, record.images)]
    assert answer == bare.reply_all(asked, Generation(max_new_tokens=TOKENS))[0].text
    assert guarded.look(asked[0]).category == "illegal"


def test_records_need_a_model(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--model: needed"):
        _build(home, tmp_path, asking=None)


# --- published rows ---------------------------------------------------------------------------------------------------


@pytest.fixture
def published(home: Path) -> Path:
    """Three rows in the published layout, on images of the miniature."""
    kinds = ("SA set", "TCB set", "GB set")
    rows = [
        {
            "pic_path": f"train/{index:05d}.png",
            "input": "How?",
            "output": "Theirs.",
            "type": kind,
            "output_refuse": "Never.",
        }
        for index, kind in enumerate(kinds)
    ]
    return workshop.save_rows(home / "data" / "published.jsonl", rows)


def _answers(out: Path) -> list[str]:
    return [_said(record)[1] for record in _records(out)]


def test_published_rows_keep_their_answers_without_a_model(home: Path, tmp_path: Path, published: Path) -> None:
    report = _build(home, tmp_path, records=[published], counts=None, asking=None)
    assert _answers(tmp_path) == ["Never.", "Theirs.", "Theirs."]
    assert [record.part for record in _records(tmp_path)] == ["malicious", "contrastive", "benign"]
    assert (report["refusals"], report["model"]) == ("output_refuse", None)


def test_published_rows_get_the_models_own_answers(home: Path, tmp_path: Path, published: Path) -> None:
    _build(home, tmp_path, records=[published], counts=None)
    refusal, *own = _answers(tmp_path)
    engine = Engine.load(home / "base", defense="none", device="cpu")
    asked = [Request("How?", record.images) for record in _records(tmp_path)[1:]]
    assert refusal == "Never."
    assert own == [reply.text for reply in engine.reply_all(asked, Generation(max_new_tokens=TOKENS))]


@pytest.mark.parametrize("changes", [{}, {"counts": None, "refusals": "record"}])
def test_flags_that_published_rows_cannot_follow_are_an_error(
    home: Path, tmp_path: Path, published: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="published pairs have their counts and refusals"):
        _build(home, tmp_path, records=[published], **changes)


def test_two_layouts_are_not_mixed(home: Path, tmp_path: Path, published: Path) -> None:
    with pytest.raises(RecordError, match=r"train\.jsonl: not published pairs"):
        _build(home, tmp_path, records=[published, home / "data" / "train.jsonl"], counts=None)


# --- the command ------------------------------------------------------------------------------------------------------


def _command(home: Path, out: Path, *flags: str) -> list[str]:
    return ["pair", str(home / "data" / "train.jsonl"), "--model", str(home / "base"), "--out", str(out), *flags]


def test_command_says_what_it_made(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--malicious", "4", "--max-new-tokens", str(TOKENS), "--device", "cpu")
    assert main(_command(home, tmp_path, *flags)) == 0
    told = capsys.readouterr().out
    assert "malicious: 4 records" in told and "contrastive: 4 records" in told and "benign: 2 records" in told
    assert told.splitlines()[-1] == f"done: {tmp_path / pair_build.PAIRS}"


def test_command_counts_refusals_by_the_rules_of_the_evaluation(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model_answers, "_answers", lambda engine, some, asking: [REFUSED] * len(some))
    assert main(_command(home, tmp_path, "--malicious", "2", "--benign", "0", "--device", "cpu")) == 0
    assert "own answers: 2, of them refusals: 2, cut off: 0" in capsys.readouterr().out


def test_too_few_records_end_the_command_in_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(home, tmp_path / "out")) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "train.jsonl" in line and "400 are needed" in line and "--malicious" in line
    assert not (tmp_path / "out").exists(), "nothing is written before the draw is known to succeed"


@pytest.mark.parametrize("flag", ["--batch-size", "--max-new-tokens"])
def test_senseless_numbers_are_an_error_that_names_the_flag(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(_command(home, tmp_path, flag, "0"))
    assert left.value.code == 2 and f"{flag}: '0'" in capsys.readouterr().err
