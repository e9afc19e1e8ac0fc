"""Learning a security tensor: what moves and what does not, the loss by hand, and one test per trap of methods §3.6."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import get_scheduler

from safevlm.config import PartWeights, Recipe, SafetyConfig, TensorSettings
from safevlm.data.collate import IGNORED
from safevlm.data.records import PARTS, Record, RecordError, read_records
from safevlm.defenses import security_tensor
from safevlm.engine import Engine
from safevlm.model import loading, losses
from safevlm.model.checkpoint_folder import FINAL
from safevlm.taxonomy import DEFAULT
from safevlm.training import run, start, tensor_stage
from safevlm.training.prepare import prepare, trainable
from safevlm.training.run import train
from safevlm.training.stages import STAGES
from safevlm.training.tensor_stage import PartCollator, TensorTrainer, count_parts, split
from safevlm.training.tensors import NAME, TensorLearner
from safevlm.types import Request
from tests import tiny
from tests.training import workshop
from tests.training.launching import fork

pytestmark = pytest.mark.slow

WAYS: dict[str, dict[str, Any]] = {
    "textual": {"kind": "textual"},
    "visual": {"kind": "visual"},
    "patches": {"kind": "visual", "basis": "patches"},
}
EVERY_WAY = pytest.mark.parametrize("way", ["textual", "visual", pytest.param("patches", marks=pytest.mark.slow)])
KINDS = pytest.mark.parametrize("way", ["textual", "visual"])
WEIGHTS = PartWeights(malicious=2.0, contrastive=3.0, benign=5.0)
"""All different, so that no two terms can be mistaken for each other."""
WHOLE: dict[str, Any] = {
    "tensor": {"held_out": 2, "init_std": 0.2},
    "optim": {"epochs": 2, "warmup_steps": 2},
    "run": {"save_steps": 2},
}
"""18 of 24 pairs, 8 to an update: six updates; checkpoint-2 lies inside the first epoch, checkpoint-4 in the second."""
ALL_WORDS = 10**6
"""More than there are: the loss is exact, though the untouched model is asked once."""
BOUND = 8.0
"""Of the whole visual run, in pixels; its start is larger."""


class Watched(TensorTrainer):
    """Remembers the weights that it started from and what it was fed."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.before = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.fed: list[list[str]] = []
        self.fed_in_training: set[bool] = set()

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        self.fed.append(list(inputs["ids"]))
        self.fed_in_training.add(model.llava.training)
        return super().compute_loss(model, inputs, *rest, **named)

    def changed(self) -> set[str]:
        after = self.model.state_dict()
        return {name for name in self.before if not torch.equal(after[name], self.before[name])}


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted."""

    out: Path
    trainer: Watched


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`: a stock LLaVA; `data/pairs.jsonl`: 12 malicious, 6 contrastive and 6 benign pairs."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    made = workshop.rows(home / "data", count=24)
    risky = [row for row in made if row["safe_type"] != DEFAULT.category_id("clean")][:12]
    clean = [row for row in made if row["safe_type"] == DEFAULT.category_id("clean")]
    clean += [{**row, "id": f"again-{row['id']}"} for row in clean]
    for part, rows in zip(PARTS, (risky, clean[:6], clean[6:12]), strict=True):
        for row in rows:
            row["part"] = part
    workshop.save_rows(home / "data" / "pairs.jsonl", [*risky, *clean[:12]])
    return home


@pytest.fixture(scope="module")
def whole(home: Path) -> Callable[[str], Whole]:
    """One run of each way, made when first asked for. Read only."""

    @functools.cache
    def make(way: str) -> Whole:
        with pytest.MonkeyPatch.context() as patched:
            trainers = _watch(patched)
            train(_whole(home, home / way, way))
            return Whole(home / way, trainers[0])

    return make


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    made: list[Watched] = []
    monkeypatch.setattr(tensor_stage, "TensorTrainer", lambda **given: made.append(Watched(**given)) or made[-1])
    return made


def _recipe(home: Path, out: Path, way: str = "textual", data: Path | None = None, **sections: Any) -> Recipe:
    """12 + 6 + 6 pairs, 8 to an update; `sections` as in `workshop.recipe`, and `tensor`."""
    tensor = {**WAYS[way], "tokens": 3, "weights": WEIGHTS, "kl_words": ALL_WORDS, **sections.pop("tensor", {})}
    sections["model"] = {"safety": SafetyConfig(**tiny.BARE), **sections.get("model", {})}
    start = sections.pop("start", home / "base")
    made = workshop.recipe(start, data or home / "data" / "pairs.jsonl", out, **sections)
    return dataclasses.replace(made, stage="security_tensor", tensor=TensorSettings(**tensor))


def _whole(home: Path, out: Path, way: str, **run: Any) -> Recipe:
    bound = {"epsilon": BOUND} if way == "visual" else {}
    sections = {**WHOLE, "tensor": {**WHOLE["tensor"], **bound}, "run": {**WHOLE["run"], **run}}
    return _recipe(home, out, way, **sections)


def _tensor(folder: Path, way: str) -> security_tensor.SecurityTensor:
    return security_tensor.read(folder / security_tensor.file_name(WAYS[way]["kind"]))


def _records(home: Path) -> list[Record]:
    return read_records([home / "data" / "pairs.jsonl"], DEFAULT)


@functools.cache
def _bare(home: Path) -> loading.Loaded:
    return loading.load(home / "base")


def _collated(home: Path, records: Sequence[Record]) -> dict[str, Any]:
    return PartCollator(_bare(home).processor)(records)


def _learner(home: Path, way: str = "textual", **settings: Any) -> TensorLearner:
    torch.manual_seed(0)
    fields = {**WAYS[way], "tokens": 3, "init_std": 0.5, **settings}
    settings = tiny.recipe("security_tensor", tensor=TensorSettings(**fields))
    return prepare(_bare(home).safe_llava, STAGES["security_tensor"], settings).eval()


def _asked(learner: TensorLearner, batch: dict[str, Any], untouched: bool = True) -> Any:
    names = ("input_ids", "attention_mask", "pixel_values", "labels")
    rows = torch.full((len(batch["input_ids"]),), untouched)
    with torch.no_grad():
        return learner(**{name: batch[name] for name in names}, untouched=rows)


def _by_hand(learner: TensorLearner, record: Record, home: Path, position: str | None) -> Tensor:
    """(n, vocabulary) for one pair, by LLaVA's own embedding and forward; position None: without the tensor."""
    batch, llava = _collated(home, [record]), learner.llava
    pixels = batch["pixel_values"]
    if learner.settings.kind == "visual" and position:
        pixels = pixels + learner.values()
    with torch.no_grad():
        ids, embeds = batch["input_ids"], llava.get_input_embeddings()(batch["input_ids"])
        image = ids == tiny.IMAGE
        embeds = embeds.masked_scatter(
            image[..., None], llava.project(llava.encode_images(pixels).patches).flatten(0, 1)
        )
        at, extra = 0, 0
        if learner.settings.kind == "textual" and position:
            at, extra = (0 if position == "start" else int(image[0].nonzero().max()) + 1), 3
            embeds = torch.cat([embeds[:, :at], learner.security_tensor[None], embeds[:, at:]], 1)
        logits = llava.lm_head(llava.model.language_model(inputs_embeds=embeds).last_hidden_state)[0]
    answer = (batch["labels"][0] != IGNORED).nonzero().squeeze(1)
    return logits[answer + extra - 1]


# What trains


@EVERY_WAY
def test_every_weight_of_the_model_stays_bit_for_bit_and_the_tensor_moves(
    whole: Callable[[str], Whole], way: str
) -> None:
    trainer = whole(way).trainer
    assert trainer.changed() == {NAME}, "a frozen weight moved, or the tensor did not"
    assert set(trainable(trainer.model)) == {NAME}
    gradients = [name for name, weight in trainer.model.named_parameters() if weight.grad is not None and name != NAME]
    assert not gradients, f"frozen weights got gradients: {gradients}"
    assert trainer.fed_in_training == {False}, "the model does not train, so its dropout must be off"


@pytest.mark.slow
@EVERY_WAY
def test_a_run_that_learns_lowers_the_refusals_loss(home: Path, tmp_path: Path, way: str) -> None:
    logged = workshop.history(train(_recipe(home, tmp_path / "out", way, optim={"epochs": 6, "lr": 3e-2})))
    first, last = (sum(line["loss_malicious"] for line in part) for part in (logged[:3], logged[-3:]))
    assert last < first


@pytest.mark.slow
def test_checkpoint_with_safety_modules_keeps_them_and_trains(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its LM tokens stand in the image slots, as they do at inference."""
    stage1 = workshop.recipe(home / "base", home / "data" / "pairs.jsonl", tmp_path / "one", optim={"max_steps": 1})
    guarded, trainers = train(stage1), _watch(monkeypatch)
    final = train(_recipe(home, tmp_path / "two", start=guarded, tensor={"init_std": 0.5}, optim={"max_steps": 1}))
    assert trainers[0].changed() == {NAME}
    _same_first_token(guarded, final, "textual", trainers[0], _records(home)[0])


@pytest.mark.slow
@KINDS
def test_gradient_checkpointing_changes_nothing(home: Path, tmp_path: Path, way: str) -> None:
    plain, thrifty = (
        workshop.history(train(_recipe(home, tmp_path / str(wanted), way, optim={"gradient_checkpointing": wanted})))
        for wanted in (False, True)
    )
    for first, second in zip(plain, thrifty, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"safety": SafetyConfig()}}, "model.safety"),
        ({"run": {"deepspeed": "zero2.json"}}, "run.deepspeed"),
        ({"loss": {"lm": 0.0}}, "loss.lm"),
        ({"tensor": {"tokens": 0}}, "tensor.tokens"),
        ({"tensor": {"epsilon": 8.0}}, "tensor.epsilon"),
        ({"tensor": {"basis": "patches"}}, "tensor.basis"),
        ({"tensor": {"kind": "visual", "basis": "patches", "epsilon": 8.0}}, "tensor.epsilon"),
        ({"tensor": {"held_out": -1}}, "tensor.held_out"),
    ],
)
def test_recipe_that_makes_no_sense_names_its_key(home: Path, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train(_recipe(home, home / "never", **sections))
    assert not (home / "never").exists(), "the run began all the same"


# The loss


@pytest.mark.parametrize(
    ("way", "position"), [("textual", "start"), ("textual", "after_image"), ("visual", "start"), ("patches", "start")]
)
def test_batched_answers_are_those_of_each_pair_alone_by_llavas_own_forward(
    home: Path, way: str, position: str
) -> None:
    records = _records(home)[10:14]
    learner = _learner(home, way, position=position)
    answers = _asked(learner, _collated(home, records))
    for place, got in ((position, answers.logits), (None, answers.untouched)):
        expected = torch.cat([_by_hand(learner, record, home, place) for record in records])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answers.logits, answers.untouched, atol=1e-2), "the tensor changes nothing"


@pytest.mark.slow
@KINDS
def test_eight_by_one_equals_two_by_four_equals_one_by_eight(home: Path, tmp_path: Path, way: str) -> None:
    logs = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        optim = {"batch_size": batch_size, "accumulation": accumulation, "max_steps": 2}
        logs.append(workshop.history(train(_recipe(home, tmp_path / str(batch_size), way, optim=optim))))
    for lines in zip(*logs, strict=True):
        for key in ("loss", "loss_malicious", "loss_contrastive", "loss_benign", "grad_norm"):
            values = [line.get(key, 0.0) for line in lines]
            assert values == pytest.approx([values[0]] * 3, rel=1e-3, abs=1e-6), f"{key} depends on the cut: {values}"


@pytest.mark.slow
def test_two_processes_learn_what_one_with_twice_the_batch_learns(home: Path, tmp_path: Path) -> None:
    """Of whole updates: the last batch of an epoch is filled up where it does not reach for every process.

    24 pairs train, 8 to an update, so that the fourth has pairs of which the words are known.
    """
    tensor = {**WHOLE["tensor"], "epsilon": BOUND}
    lines = (home / "data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    data = home / "data" / "more_pairs.jsonl"
    data.write_text("".join([*lines, *lines[-6:]]), encoding="utf-8")
    one, two = (
        _recipe(home, tmp_path / name, "visual", data, tensor=tensor, optim={"batch_size": size, "max_steps": 4})
        for name, size in (("one", 4), ("two", 2))
    )
    alone, together = train(one), fork("torchrun", two, tmp_path)
    first, second = _tensor(alone, "visual"), _tensor(together, "visual")
    torch.testing.assert_close(first.values, second.values, rtol=0, atol=1e-4)
    assert second.about["held_out_loss"] == pytest.approx(first.about["held_out_loss"], rel=1e-4)
    assert sorted(path.name for path in together.parent.iterdir()) == ["best", "checkpoint-4", "final"]
    for line, other in zip(workshop.history(alone), workshop.history(together), strict=True):
        assert other.keys() == line.keys()
        for key in {"grad_norm", *line} - {"learning_rate", "epoch", "step"}:
            assert other[key] == pytest.approx(line[key], rel=1e-3), f"{key} hangs on the number of processes"


@KINDS
def test_logged_terms_add_up_to_the_loss(whole: Callable[[str], Whole], way: str) -> None:
    for line in workshop.history(whole(way).out / FINAL):
        total = sum(weight * line.get(f"loss_{part}", 0.0) for part, weight in dataclasses.asdict(WEIGHTS).items())
        assert line["loss"] == pytest.approx(total, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_loss_that_is_not_finite_names_the_pairs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_term = losses.divergence
    broken = lambda logits, untouched: dataclasses.replace(whole_term(logits, untouched), total=logits.sum() * math.nan)  # noqa: E731
    monkeypatch.setattr(losses, "divergence", broken)
    with pytest.raises(FloatingPointError, match="records"):
        train(_recipe(home, tmp_path / "out", tensor={"kl_words": 0}))
    assert not workshop.file_bytes(tmp_path / "out"), "a broken run left something behind"


@pytest.mark.slow
def test_the_untouched_model_is_asked_once_about_each_clean_pair(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 of 18 clean pairs and 6 malicious ones train, or are held out; the loss stays the exact one."""
    fed, logged = {}, {}
    for words in (0, ALL_WORDS, 64):
        with _rows_of_the_model(monkeypatch) as rows:
            made = _whole(home, tmp_path / str(words), "textual")
            settings = dataclasses.replace(made.tensor, kl_words=words)
            logged[words] = workshop.history(train(dataclasses.replace(made, tensor=settings)))
        fed[words] = sum(rows)
    updates, clean_trained, clean_held_out, saves = 2 * 18, 4 + 4, 2 + 2, 3
    alone = updates + saves * 6
    assert fed[ALL_WORDS] == fed[64] == alone + clean_trained + clean_held_out
    assert fed[0] == alone + 2 * clean_trained + saves * clean_held_out
    for exact, kept, few in zip(logged[0], logged[ALL_WORDS], logged[64], strict=True):
        assert kept["loss"] == pytest.approx(exact["loss"], rel=1e-5)
        assert few.get("loss_benign", 0.0) <= exact.get("loss_benign", 0.0) * (1 + 1e-3)


@contextlib.contextmanager
def _rows_of_the_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows the model is given, at each of its calls."""
    rows: list[int] = []

    def counted(module: torch.nn.Module, args: Any, given: dict[str, Any]) -> None:
        rows.append(len(given["input_ids"]))

    def begin(recipe: Recipe) -> loading.Loaded:
        loaded = start.load(recipe)
        loaded.safe_llava.register_forward_pre_hook(counted, with_kwargs=True)
        return loaded

    with monkeypatch.context() as patched:
        patched.setattr(run, "start", SimpleNamespace(load=begin))
        yield rows


# Saving and resuming


@pytest.mark.slow
@EVERY_WAY
def test_resumed_equals_uninterrupted(
    home: Path, whole: Callable[[str], Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    uninterrupted = whole(way).out
    shutil.copytree(uninterrupted / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    trainers = _watch(monkeypatch)
    again = train(_whole(home, tmp_path / "again", way))
    assert len(trainers[0].fed) == 3, "the run began anew instead of going on"
    one, other = _tensor(uninterrupted / FINAL, way), _tensor(again, way)
    assert torch.equal(one.values, other.values), "resuming changed the tensor"
    assert one.about == other.about
    assert workshop.history(uninterrupted / FINAL) == workshop.history(again)


@EVERY_WAY
def test_result_holds_the_tensor_what_made_it_and_no_model(whole: Callable[[str], Whole], way: str) -> None:
    final, trainer = whole(way).out / FINAL, whole(way).trainer
    file = security_tensor.file_name(WAYS[way]["kind"])
    assert set(workshop.file_bytes(final)) == {file, "recipe.yaml", "run.json", "trainer_state.json"}
    learned = {security_tensor.KEY, security_tensor.LEARNED} if way == "patches" else {security_tensor.KEY}
    assert {name for name in load_file(final / file) if not name.startswith("base.")} == learned
    tensor = _tensor(final, way)
    assert torch.equal(tensor.values, trainer.model.values()), "what was saved is not what was learned"
    assert (tensor.kind, tensor.about["base"]) == (WAYS[way]["kind"], str(trainer.loaded.path))
    assert (tensor.about["steps"], tensor.about["norm"]) == (6, pytest.approx(tensor.values.norm().item()))
    assert tensor.about["norm_inf"] == pytest.approx(tensor.values.abs().max().item())
    logged = workshop.history(final)[-1]
    assert tensor.about["loss"] == logged["loss"] > 0 and tensor.about["held_out_loss"] > 0
    record = json.loads((final / "run.json").read_text(encoding="utf-8"))
    assert record["records"]["part"] == {"malicious": 12, "contrastive": 6, "benign": 6}
    assert record["trained"]["parameters"] == trainer.model.security_tensor.numel()


@EVERY_WAY
def test_the_engine_puts_the_tensor_where_training_did(home: Path, whole: Callable[[str], Whole], way: str) -> None:
    _same_first_token(home / "base", whole(way).out / FINAL, way, whole(way).trainer, _records(home)[0])


def _same_first_token(model: Path, final: Path, way: str, trainer: Watched, record: Record) -> None:
    """The first answer token's logits, by the engine with the saved tensor and by what was trained."""
    engine = Engine.load(model, defense=f"security-tensor:{WAYS[way]['kind']}={final}", device="cpu")
    encoded = engine.encoded([Request(record.messages[0]["content"][-1]["text"], record.images)])
    with torch.no_grad():
        said = engine.model(**encoded.model_inputs).logits[0, -1]
    learned = _asked(trainer.model.eval(), trainer.data_collator([record])).logits[0]
    torch.testing.assert_close(said, learned, rtol=1e-4, atol=1e-4)


# The traps of methods §3.6, by number


def test_trap_1_malicious_pairs_learn_the_refusal_and_unknown_parts_are_errors(home: Path, tmp_path: Path) -> None:
    """The release's string never matched, so that harmful answers were learned."""
    records = [record for record in _records(home) if record.part == "malicious"][:2]
    batch = _collated(home, records)
    learned = [workshop.tokenizer().decode(row[row != IGNORED]) for row in batch["malicious"]]
    assert learned == [f" {record.messages[-1]['content'][0]['text']}</s>" for record in records]
    assert not any((batch[part] != IGNORED).any() for part in ("contrastive", "benign"))
    rows = [json.loads(line) for line in (home / "data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    for part, words in (("Harmful", "unknown part 'Harmful'"), ("SA set", "unknown part"), (None, "no `part`")):
        data = workshop.save_rows(home / "data" / "wrong.jsonl", [*rows, {**rows[0], "part": part}])
        with pytest.raises(RecordError, match=f"wrong.jsonl:25: {words}"):
            train(_recipe(home, tmp_path / "out", data=data))


def test_trap_1_a_part_without_pairs_or_a_pair_without_an_image_is_an_error(home: Path) -> None:
    records = _records(home)
    with pytest.raises(RecordError, match="'benign'"):
        count_parts([record for record in records if record.part != "benign"])
    with pytest.raises(RecordError, match="no image"):
        count_parts([*records, dataclasses.replace(records[0], images=())])


def test_trap_2_learning_rate_trace_equals_the_recipe(whole: Callable[[str], Whole]) -> None:
    """The release's scheduler was built and never stepped."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=6)
    expected = []
    for _ in range(6):
        optimizer.step()
        expected.append(schedule.get_last_lr()[0])
        schedule.step()
    trace = [line["learning_rate"] for line in workshop.history(whole("textual").out / FINAL)]
    assert trace == pytest.approx(expected), "the rate does not follow the recipe"
    assert len(set(trace)) > 3


def test_trap_3_the_bound_is_in_pixels_and_holds(home: Path, whole: Callable[[str], Whole]) -> None:
    """The release clamped preprocessed values, which live near 2, at 1000."""
    for folder in ("checkpoint-2", "checkpoint-4", FINAL):
        tensor = _tensor(whole("visual").out / folder, "visual")
        changes = _pixel_changes(home, tensor.values)
        assert changes == pytest.approx(torch.full((3,), BOUND)), "every channel reaches the bound and none passes it"
        assert tensor.about["largest_pixel_change"] == pytest.approx(BOUND)
        assert tensor.about["epsilon"] == BOUND


@pytest.mark.slow
@pytest.mark.parametrize("way", ["visual", "patches"])
def test_trap_3_without_a_bound_the_tensor_is_free_and_its_size_is_told(home: Path, tmp_path: Path, way: str) -> None:
    tensor = _tensor(train(_recipe(home, tmp_path / "out", way, optim={"epochs": 2, "lr": 0.3})), way)
    changes = _pixel_changes(home, tensor.values)
    assert (changes > 2 * BOUND).all()
    assert tensor.about["largest_pixel_change"] == pytest.approx(changes.max().item())
    assert tensor.about["epsilon"] is None


def _pixel_changes(home: Path, values: Tensor) -> Tensor:
    """(3,): the largest change of a pixel on the scale of 0 to 255, by colour channel."""
    std = torch.tensor(_bare(home).processor.image_processor.image_std).view(3, 1, 1)
    return (values.abs() * std * 255).amax((1, 2))


def test_trap_4_labels_are_of_one_tokenisation(home: Path) -> None:
    """The release tokenised the answer alone and cut logits by its length; a merge at the border shifts all of it."""
    record = _records(home)[0]
    batch = _collated(home, [record])
    labels = batch["labels"][0]
    assert torch.equal(labels[labels != IGNORED], batch["input_ids"][0][labels != IGNORED])
    learner = _learner(home)
    loss = F.cross_entropy(_asked(learner, batch).logits, labels[labels != IGNORED])
    assert loss == pytest.approx(
        F.cross_entropy(_by_hand(learner, record, home, "start"), labels[labels != IGNORED]).item(), rel=1e-4
    )


def test_trap_5_divergence_is_forward_kl_per_position_checked_by_hand() -> None:
    """The release's averaged over the vocabulary too."""
    theirs = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]
    ours = [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]
    pairs = zip(sum(theirs, []), sum(ours, []), strict=True)
    by_hand = sum(p * math.log(p / q) for p, q in pairs)
    term = losses.divergence(torch.tensor(ours).log() + 3.0, torch.tensor(theirs).log() - 1.0)
    assert (term.total.item(), int(term.count)) == (pytest.approx(by_hand, rel=1e-5), 2)
    other_way = losses.divergence(torch.tensor(theirs).log(), torch.tensor(ours).log())
    assert other_way.total.item() != pytest.approx(by_hand, rel=1e-2), "this example cannot tell the direction"


def test_trap_5_the_terms_are_means_over_answer_positions(home: Path, whole: Callable[[str], Whole]) -> None:
    """Of whole updates of two batches. The rate begins at 0, so that two updates see the tensor of the start."""
    trainer, learner, seen = whole("textual").trainer, _learner(home), set()
    with torch.no_grad():
        learner.security_tensor.copy_(trainer.before[NAME])
    logged = workshop.history(whole("textual").out / FINAL)
    for line, batches in zip(logged[:2], (trainer.fed[:2], trainer.fed[2:4]), strict=True):
        update = [record for record in _records(home) if record.id in sum(batches, [])]
        for part, mean in _means_by_hand(learner, home, update).items():
            assert line[f"loss_{part}"] == pytest.approx(mean, rel=1e-3) and mean > 1e-3
            seen.add(part)
    assert seen == set(PARTS)


def _means_by_hand(learner: TensorLearner, home: Path, records: Sequence[Record]) -> dict[str, float]:
    """Cross-entropy of the refusals, forward KL of the clean answers."""
    means = {}
    for part in {record.part for record in records}:
        batch = _collated(home, [record for record in records if record.part == part])
        answers = _asked(learner, batch)
        ours, theirs = answers.logits.log_softmax(-1), answers.untouched.log_softmax(-1)
        wanted = batch["labels"][batch["labels"] != IGNORED]
        entropy, kl = -ours.gather(1, wanted[:, None]).mean(), (theirs.exp() * (theirs - ours)).sum(-1).mean()
        means[part] = (entropy if part == "malicious" else kl).item()
    return means


def test_trap_6_every_epoch_is_shuffled_anew(whole: Callable[[str], Whole]) -> None:
    """The release shuffled once."""
    fed = [name for batch in whole("textual").trainer.fed for name in batch]
    assert sorted(fed[:18]) == sorted(fed[18:]) and fed[:18] != fed[18:], "both epochs have the same order"


@pytest.mark.slow
def test_trap_6_the_seed_fixes_the_tensor(home: Path, whole: Callable[[str], Whole], tmp_path: Path) -> None:
    """The release had none."""
    again = train(_whole(home, tmp_path / "again", "textual"))
    other = train(_whole(home, tmp_path / "other", "textual", seed=7))
    one = _tensor(whole("textual").out / FINAL, "textual").values
    assert torch.equal(one, _tensor(again, "textual").values), "the seed does not fix the tensor"
    assert not torch.equal(one, _tensor(other, "textual").values)


@pytest.mark.slow
@KINDS
def test_trap_7_grey_palette_and_alpha_images_train(home: Path, tmp_path: Path, way: str) -> None:
    """The release left the conversion to whatever processor there was."""
    rows = [json.loads(line) for line in (home / "data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [rows[0], rows[12], rows[18]]
    for row, mode in zip(chosen, ("L", "P", "RGBA"), strict=True):
        with Image.open(home / "data" / row["image"]) as image:
            image.convert(mode).save(tmp_path / f"{mode}.png")
        row["image"] = f"{mode}.png"
    data = workshop.save_rows(tmp_path / "pairs.jsonl", chosen)
    logged = workshop.history(train(_recipe(home, tmp_path / "out", way, data, optim={"batch_size": 1})))
    assert all(math.isfinite(line["loss"]) for line in logged)


@pytest.mark.parametrize("size", [(32, 8), (64, 16)])
def test_trap_8_the_shape_is_of_the_config_and_needs_no_image(size: tuple[int, int]) -> None:
    """The release needed an image of its own to start."""
    config = tiny.safe_config(tiny.stock_config(image_size=size[0], patch=size[1]), **tiny.BARE)
    llava = tiny.safe_llava(tiny.stock_config(image_size=size[0], patch=size[1]), **tiny.BARE)
    assert TensorLearner(llava, TensorSettings(kind="visual")).security_tensor.shape == (3, size[0], size[0])
    width = config.text_config.hidden_size
    assert TensorLearner(llava, TensorSettings(tokens=5)).security_tensor.shape == (5, width)


@pytest.mark.slow
def test_trap_8_the_last_and_the_best_are_saved(home: Path, tmp_path: Path) -> None:
    """The release saved every 20th epoch from the first, so the last ones were lost."""
    optim = {"epochs": 2, "lr": 0.5, "schedule": "constant"}  # too fast on purpose
    sections = {**WHOLE, "optim": optim, "run": {"save_steps": 1}}
    trained = train(_recipe(home, tmp_path / "out", "visual", **sections))
    log = json.loads((trained / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = {line["step"]: line["held_out_loss"] for line in log if "held_out_loss" in line}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    best, last = _tensor(tmp_path / "out" / "best", "visual"), _tensor(trained, "visual")
    assert best.about["held_out_loss"] == min(losses.values())
    assert best.about["steps"] == min(losses, key=losses.__getitem__) < 6, "this run cannot tell best from last"
    assert (last.about["steps"], last.about["held_out_loss"]) == (6, losses[6])


def test_trap_8_held_out_pairs_are_never_trained_on(home: Path, whole: Callable[[str], Whole]) -> None:
    trained, held_out = split(_records(home), 2, 256)
    assert {part: sum(record.part == part for record in held_out) for part in PARTS} == dict.fromkeys(PARTS, 2)
    fed = {name for batch in whole("visual").trainer.fed for name in batch}
    assert fed == {record.id for record in trained} and not fed & {record.id for record in held_out}
    with pytest.raises(RecordError, match="tensor.held_out: 6 of 6 contrastive"):
        split(_records(home), 6, 256)


def test_held_out_loss_is_the_weighted_sum_of_its_terms(home: Path, whole: Callable[[str], Whole]) -> None:
    trainer = whole("textual").trainer
    means = _means_by_hand(trainer.model.eval(), home, trainer.held_out)
    total = sum(weight * means[part] for part, weight in dataclasses.asdict(WEIGHTS).items())
    told = _tensor(whole("textual").out / FINAL, "textual").about["held_out_loss"]
    assert told == pytest.approx(total, rel=1e-4)


@pytest.mark.slow
def test_trap_9_place_and_benign_term_are_chosen_by_the_recipe_and_matter(home: Path, tmp_path: Path) -> None:
    """The release and its reviews say different things about both."""
    learned = set()
    for choice in ({"position": "start"}, {"position": "after_image"}, {"benign": "ce"}):
        final = train(_recipe(home, tmp_path / str(len(learned)), tensor=choice, optim={"max_steps": 1}))
        tensor = _tensor(final, "textual")
        assert tensor.position == choice.get("position", "start")
        learned.add(tuple(tensor.values.flatten().tolist()))
    assert len(learned) == 3, "a choice changes nothing"


@pytest.mark.slow
def test_trap_9_the_ce_term_never_asks_the_bare_model(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "divergence", None)
    logged = workshop.history(train(_recipe(home, tmp_path / "out", tensor={"benign": "ce"}, optim={"epochs": 1})))
    assert max(line.get("loss_benign", 0.0) for line in logged) > 1, "cross-entropy of a random model is large"


@KINDS
def test_trap_9_the_control_is_random_and_as_large(whole: Callable[[str], Whole], way: str) -> None:
    tensor = _tensor(whole(way).out / FINAL, way)
    control = security_tensor.random_like(tensor, seed=1)
    rows, shuffled = tensor.values.flatten(1), control.values.flatten(1)
    assert torch.equal(rows.sort().values, shuffled.sort().values), "every norm must stay"
    assert not torch.equal(rows, shuffled)
    assert not torch.equal(control.values, security_tensor.random_like(tensor, seed=2).values)
    assert control.about["shuffled"] == 1
