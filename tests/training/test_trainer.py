"""A whole run, small: what trains and what does not, what the loss is, and that stopping changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from llava_patch import parts
from safevlm.config import SafetyConfig
from safevlm.model import base_print, loading, losses, saving
from safevlm.model.checkpoint_folder import ADAPTER_CONFIG, ADAPTER_FILE, FINAL, SAFETY_FILE
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import bench
from safevlm.training.prepare import prepare, trainable
from safevlm.training.run import train
from safevlm.training.stages import stage_of
from tests import tiny
from tests.training import workshop

WEIGHTS = {"lm": 2.0, "level": 3.0, "category": 5.0}
"""All different, so that no two terms can be mistaken for each other."""
WHOLE: dict[str, Any] = {
    "loss": WEIGHTS,
    "lora": {"dropout": 0.5},
    "optim": {"epochs": 2},
    "run": {"save_steps": 2},
}
"""Six updates; checkpoint-2 lies inside the first epoch, checkpoint-4 inside the second."""


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted."""

    out: Path
    trainer: workshop.WatchedTrainer
    changed: frozenset[str]
    """Names of the weights that it moved."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`: a stock LLaVA; `data/mixed.jsonl`: 24 records, some without a verdict or an image."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "mixed.jsonl", workshop.mixed_rows(home / "data"))
    return home


@pytest.fixture(scope="module")
def wholes(home: Path) -> dict[str, Whole]:
    """One run of each stage. Read only."""
    runs = {}
    for stage in ("stage1", "stage2"):
        with pytest.MonkeyPatch.context() as patched:
            trainers = workshop.watch(patched)
            train(_recipe(home, home / stage, stage, **WHOLE))
            runs[stage] = Whole(home / stage, trainers[0], frozenset(trainers[0].changed()))
    return runs


def _recipe(home: Path, out: Path, stage: str = "stage1", **sections: dict[str, Any]) -> Any:
    """Stage 2 starts from the stage 1 of `home`."""
    start = home / "base" if stage == "stage1" else home / "stage1"
    return workshop.recipe(start, home / "data" / "mixed.jsonl", out, stage, **sections)


def _some_rows(home: Path, count: int, keep: Any = lambda row: True) -> list[dict[str, Any]]:
    lines = (home / "data" / "mixed.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if keep(row)][:count]


def _trained_file(stage: str) -> str:
    return SAFETY_FILE if stage == "stage1" else ADAPTER_FILE


def _weights(folder: Path, stage: str) -> dict[str, Tensor]:
    return load_file(folder / _trained_file(stage))


# What trains


def test_stage1_changes_every_safety_weight_and_nothing_else(wholes: dict[str, Whole]) -> None:
    names, changed = set(wholes["stage1"].trainer.before), wholes["stage1"].changed
    ours = {name for name in names if is_safety_name(name)}
    assert changed <= ours, f"frozen weights moved: {sorted(changed - ours)}"
    assert ours <= changed, f"these safety weights never learn: {sorted(ours - changed)}"
    assert names - ours, "there is nothing that could have been frozen"


def test_stage2_changes_every_lora_weight_and_nothing_else(wholes: dict[str, Whole]) -> None:
    lora = {name for name in wholes["stage2"].trainer.before if ".lora_" in name}
    assert len(lora) == 2 * workshop.LAYERS * workshop.PROJECTIONS
    assert wholes["stage2"].changed == lora, sorted(wholes["stage2"].changed ^ lora)


def test_head_only_training_never_runs_the_llm(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = workshop.watch(monkeypatch)
    final = train(_recipe(home, tmp_path / "out", loss={"lm": 0.0}))
    assert trainers[0].llm_calls == 0, "loss.lm 0 is there to save the LLM's time and memory"
    changed = trainers[0].changed()
    assert all(name.startswith(("safety_projector", "safety_head")) for name in changed)
    assert any(name.startswith("safety_projector") for name in changed) and "safety_lm_tokens.latent" not in changed
    assert changed == set(trainable(trainers[0].model)), "what the loss does not reach must be frozen"
    logged = workshop.history(final)
    assert all(line["loss"] > 0 and "loss_level" in line and "loss_lm" not in line for line in logged)


def test_head_only_training_of_a_batch_without_verdicts(home: Path, tmp_path: Path) -> None:
    bare = _some_rows(home, 4, lambda row: "safe_type" not in row)
    judged = _some_rows(home, 1, lambda row: "safe_type" in row and "image" in row)
    data = workshop.save_rows(home / "data" / "bare.jsonl", [*bare, *judged])
    one_by_one = {"accumulation": 1, "batch_size": 1}
    recipe = workshop.recipe(home / "base", data, tmp_path / "out", loss={"lm": 0.0}, optim=one_by_one)
    losses = [line["loss"] for line in workshop.history(train(recipe))]
    assert losses.count(0.0) == len(bare) and max(losses) > 0


def test_stage2_without_an_lm_loss_is_an_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss.lm"):
        train(_recipe(home, tmp_path / "out", "stage2", loss={"lm": 0.0}))


def test_the_llm_runs_once_per_micro_batch(wholes: dict[str, Whole]) -> None:
    for whole in wholes.values():
        assert whole.trainer.llm_calls == len(whole.trainer.fed) == 12


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_text_only_data_trains(home: Path, wholes: dict[str, Whole], tmp_path: Path, stage: str) -> None:
    """The release crashes on records without an image (methods §1.9, trap 8)."""
    data = workshop.save_rows(home / "data" / "words.jsonl", _some_rows(home, 4, lambda row: "image" not in row))
    start = home / "base" if stage == "stage1" else wholes["stage1"].out
    words = {"level": 0.0, "category": 0.0}
    optim = {"batch_size": 2, "accumulation": 2}
    recipe = workshop.recipe(start, data, tmp_path / "out", stage, optim=optim, loss=words)
    logged = workshop.history(train(recipe))
    assert all(math.isfinite(line["loss"]) and line["loss"] > 0 for line in logged)
    assert not any("loss_level" in line for line in logged), "a text-only record must not teach the head"


@pytest.mark.parametrize("empty", [pytest.param("lm_tokens", marks=pytest.mark.slow), "head_tokens"])
def test_a_bank_may_be_empty(home: Path, tmp_path: Path, empty: str) -> None:
    """Rows without an image then have nothing at all to attend to; their gradient must be zero, not NaN."""
    model = {"safety": SafetyConfig(**{**tiny.SAFETY, empty: 0})}
    final = train(_recipe(home, tmp_path / "out", model=model, optim={"max_steps": 1}))
    assert all(math.isfinite(value) for value in workshop.history(final)[0].values())
    assert all(tensor.isfinite().all() for tensor in _weights(final, "stage1").values())


@pytest.mark.parametrize("kind", [pytest.param("resampler", marks=pytest.mark.slow), "mlp"])
def test_every_projector_and_a_head_that_reads_text_train(home: Path, tmp_path: Path, kind: str) -> None:
    model = {"safety": SafetyConfig(**{**tiny.SAFETY, "projector": kind, "reads_text": True})}
    final = train(_recipe(home, tmp_path / "out", model=model, optim={"max_steps": 1}))
    assert workshop.history(final)[0]["grad_norm"] > 0


@pytest.mark.slow
def test_a_run_that_learns_lowers_every_term(home: Path, tmp_path: Path) -> None:
    logged = workshop.history(train(_recipe(home, tmp_path / "out", optim={"epochs": 5, "lr": 1e-2})))
    for term in ("loss_lm", "loss_level", "loss_category"):
        first, last = (sum(line[term] for line in part) for part in (logged[:3], logged[-3:]))
        assert last < first, f"{term} does not fall: {first:.3f} → {last:.3f}"


def test_adapter_as_a_start_is_refused(home: Path, wholes: dict[str, Whole], tmp_path: Path) -> None:
    recipe = workshop.recipe(wholes["stage2"].out, home / "data" / "mixed.jsonl", tmp_path / "three", "stage2")
    with pytest.raises(ValueError, match="safevlm merge"):
        train(recipe)


# The loss


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_eight_by_one_equals_two_by_four_equals_one_by_eight(
    home: Path, wholes: dict[str, Whole], tmp_path: Path, stage: str
) -> None:
    logs = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        optim = {"batch_size": batch_size, "accumulation": accumulation, "max_steps": 2}
        final = train(_recipe(home, tmp_path / str(batch_size), stage, optim=optim, loss=WEIGHTS))
        logs.append(workshop.history(final))
    assert [len(log) for log in logs] == [2, 2, 2]
    for step, lines in enumerate(zip(*logs, strict=True)):
        for key in ("loss", "loss_lm", "loss_level", "loss_category", "grad_norm"):
            values = [line[key] for line in lines]
            assert values == pytest.approx([values[0]] * 3, rel=1e-4), (
                f"update {step + 1}: {key} depends on how the 8 records are cut into micro-batches (base facts §4.1)"
            )


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_logged_terms_add_up_to_the_loss(wholes: dict[str, Whole], stage: str) -> None:
    for line in workshop.history(wholes[stage].out / FINAL):
        total = sum(weight * line[f"loss_{name}"] for name, weight in WEIGHTS.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5), "the loss must be the weighted sum of the logged terms"


def test_weights_scale_the_gradient_and_not_the_logged_terms(
    home: Path, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    doubled = {name: 2 * weight for name, weight in WEIGHTS.items()}
    twice = workshop.history(train(_recipe(home, tmp_path / "out", loss=doubled, optim={"max_steps": 1})))[0]
    once = workshop.history(wholes["stage1"].out / FINAL)[0]
    assert twice["grad_norm"] == pytest.approx(2 * once["grad_norm"], rel=1e-4)
    assert twice["loss_level"] == once["loss_level"], "a term must be comparable between runs with other weights"


def test_terms_are_means_over_labelled_items(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand-made truth: unlabelled rows and prompt tokens count for nothing."""
    seen: dict[str, list[tuple[float, int]]] = {"lm": [], "verdicts": []}
    language_modeling, classification = losses.language_modeling, losses.classification

    def remember(kind: str, real: Any) -> Any:
        def term(logits: Tensor, labels: Tensor, *columns: Tensor | None) -> losses.Term:
            kept = labels[:, 1:] if kind == "lm" else labels
            result = real(logits, labels, *columns)
            assert int(result.count) == int((kept != losses.IGNORED).sum())
            seen[kind].append((result.total.item(), int(result.count)))
            return result

        return term

    monkeypatch.setattr(losses, "language_modeling", remember("lm", language_modeling))
    monkeypatch.setattr(losses, "classification", remember("verdicts", classification))
    logged = workshop.history(
        train(_recipe(home, tmp_path / "out", optim={"batch_size": 8, "accumulation": 1, "max_steps": 2}))
    )
    for line, (total, count) in zip(logged, seen["lm"], strict=True):
        assert line["loss_lm"] == pytest.approx(total / count, abs=1e-5)
    for line, (total, count) in zip(logged, seen["verdicts"][::2], strict=True):
        assert line["loss_level"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_loss_that_is_not_finite_names_the_records(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    trainers = workshop.watch(monkeypatch)
    real = losses.classification

    def broken(logits: Tensor, labels: Tensor) -> losses.Term:
        term = real(logits, labels)
        return losses.Term(term.total + (value if len(trainers[0].fed) == 2 else 0), term.count)

    monkeypatch.setattr(losses, "classification", broken)
    with pytest.raises(FloatingPointError) as error:
        train(_recipe(home, tmp_path / "out"))
    assert all(name in str(error.value) for name in trainers[0].fed[1]), f"records are not named: {error.value}"
    assert not any(name in str(error.value) for name in trainers[0].fed[0])
    assert not workshop.file_bytes(tmp_path / "out"), "a broken run left something behind"


# Saving and resuming


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("stopped_at", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_resumed_equals_uninterrupted(
    home: Path, wholes: dict[str, Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, stopped_at: int
) -> None:
    whole, name = wholes[stage].out, f"checkpoint-{stopped_at}"
    shutil.copytree(whole / name, tmp_path / "again" / name)
    trainers = workshop.watch(monkeypatch)
    again = train(_recipe(home, tmp_path / "again", stage, **WHOLE))
    assert len(trainers[0].fed) == 2 * (6 - stopped_at), "the run began anew instead of going on"
    assert workshop.same_tensors(_weights(whole / FINAL, stage), _weights(again, stage)), "resuming changed the result"
    assert workshop.history(whole / FINAL) == workshop.history(again)


@pytest.mark.slow
def test_dropout_of_the_lora_is_at_work(home: Path, wholes: dict[str, Whole], tmp_path: Path) -> None:
    """Else the test above would not see a random state that was lost."""
    dry = train(_recipe(home, tmp_path / "dry", "stage2", **{**WHOLE, "lora": {"dropout": 0.0}}))
    assert not workshop.same_tensors(_weights(dry, "stage2"), _weights(wholes["stage2"].out / FINAL, "stage2"))


def test_resume_false_begins_anew(
    home: Path, wholes: dict[str, Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(wholes["stage1"].out / "checkpoint-4", tmp_path / "out" / "checkpoint-4")
    trainers = workshop.watch(monkeypatch)
    train(_recipe(home, tmp_path / "out", optim={"max_steps": 1}, run={"resume": False}))
    assert len(trainers[0].fed) == 2


@pytest.mark.parametrize(("stage", "kind"), [("stage1", "safety"), ("stage2", "adapter")])
def test_every_checkpoint_is_complete(wholes: dict[str, Whole], stage: str, kind: str) -> None:
    out = wholes[stage].out
    folders, final = [out / f"checkpoint-{step}" for step in (2, 4, 6)], out / FINAL
    names = {
        "config.json",
        SAFETY_FILE,
        base_print.FILE,
        "recipe.yaml",
        "run.json",
        "base.safetensors",
        "trainer_state.json",
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } | ({ADAPTER_FILE, ADAPTER_CONFIG} if stage == "stage2" else set())
    previous: dict[str, Tensor] | None = None
    for folder in (*folders, final):
        present = set(workshop.file_bytes(folder))
        assert names <= present, f"{folder.name} lacks {names - present}"
        loaded = loading.load(folder)
        assert loaded.kind == kind
        assert loaded.processor.num_additional_image_tokens == 1 + loaded.safe_llava.config.safety_config.lm_tokens
        weights = _weights(folder, stage)
        if folder != final:
            assert previous is None or not workshop.same_tensors(previous, weights), "two checkpoints are the same"
            previous = weights
    assert workshop.same_tensors(_weights(folders[-1], stage), _weights(final, stage))
    extra = set(workshop.file_bytes(final)) - names - {"README.md"}  # its card
    assert not extra, f"{extra} in the result: nobody needs an optimizer's state there"
    assert not any(name.startswith("model") for name in workshop.file_bytes(final)), "the frozen base was saved again"


def test_run_record_says_what_made_the_checkpoint(wholes: dict[str, Whole]) -> None:
    final = wholes["stage1"].out / FINAL
    record = json.loads((final / "run.json").read_text(encoding="utf-8"))
    assert record["stage"] == "stage1" and record["seed"] == 256
    assert record["versions"]["torch"] == torch.__version__
    assert record["records"]["all"] == 24 == sum(record["records"]["safe_type"].values())
    size = sum(tensor.numel() for tensor in _weights(final, "stage1").values())
    assert record["trained"]["parameters"] == size


def _dying_save(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th save writes a first file and dies."""
    calls: list[Path] = []
    real = saving.save

    def save(loaded: Any, model: Any, folder: Path, files: Any = None, **options: Any) -> None:
        calls.append(folder)
        if len(calls) == at:
            (folder / "half.bin").write_bytes(b"half")
            raise OSError("No space left on device")
        real(loaded, model, folder, files, **options)

    monkeypatch.setattr(saving, "save", save)


@pytest.mark.slow
def test_save_that_dies_half_way_leaves_no_checkpoint_and_the_run_goes_on(
    home: Path, wholes: dict[str, Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        _dying_save(patched, at=2)
        with pytest.raises(OSError, match="No space left"):
            train(_recipe(home, out, **WHOLE))
    visible = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    assert visible == ["checkpoint-2"], "a half-written checkpoint has a name that looks complete"
    before = workshop.file_bytes(out / "checkpoint-2")
    assert loading.load(out / "checkpoint-2").kind == "safety"
    trainers = workshop.watch(monkeypatch)
    again = train(_recipe(home, out, **WHOLE))
    assert len(trainers[0].fed) == 2 * (6 - 2), "the run must go on from checkpoint-2"
    assert workshop.file_bytes(out / "checkpoint-2") == before, "an earlier checkpoint was touched"
    whole = _weights(wholes["stage1"].out / FINAL, "stage1")
    assert workshop.same_tensors(whole, _weights(again, "stage1"))
    stray = [path for path in out.rglob("*") if path.name in ("half.bin", ".partial")]
    assert not stray, f"remains of the dead save: {stray}"


def test_remains_of_another_dead_save_do_no_harm(home: Path, tmp_path: Path) -> None:
    """A process that was killed could not clean up."""
    dead = tmp_path / "out" / ".partial" / "checkpoint-9"
    dead.mkdir(parents=True)
    (dead / "half.bin").write_bytes(b"half")
    train(_recipe(home, tmp_path / "out", optim={"max_steps": 1}))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint-1", "final"]


def test_final_save_that_dies_leaves_no_result(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        _dying_save(patched, at=2)  # the first is checkpoint-1
        with pytest.raises(OSError, match="No space left"):
            train(_recipe(home, out, optim={"max_steps": 1}))
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1"]
    trainers = workshop.watch(monkeypatch)
    train(_recipe(home, out, optim={"max_steps": 1}))
    assert trainers[0].fed == [], "all updates were done already"
    assert loading.load(out).kind == "safety"


def test_only_the_first_process_writes(
    wholes: dict[str, Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that write one file at once leave half of each."""
    trainer = wholes["stage1"].trainer
    monkeypatch.setattr(type(trainer.args), "should_save", property(lambda arguments: False))
    trainer.save_model(str(tmp_path / "second"))
    assert not (tmp_path / "second").exists() or not workshop.file_bytes(tmp_path / "second")


def test_only_so_many_checkpoints_are_kept(home: Path, tmp_path: Path) -> None:
    train(_recipe(home, tmp_path / "out", run={"save_steps": 1, "keep": 2}))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint-2", "checkpoint-3", "final"]


@pytest.mark.slow
def test_same_seed_same_run_other_seed_other_run(home: Path, tmp_path: Path) -> None:
    first, again, other = (
        _weights(train(_recipe(home, tmp_path / name, run={"seed": seed})), "stage1")
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert workshop.same_tensors(first, again), "a seed does not fix the run"
    assert not workshop.same_tensors(first, other)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(home: Path, tmp_path: Path) -> None:
    plain, thrifty = (
        workshop.history(train(_recipe(home, tmp_path / str(wanted), optim={"gradient_checkpointing": wanted})))
        for wanted in (False, True)
    )
    for first, second in zip(plain, thrifty, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_compiled_layers_change_neither_what_is_learned_nor_its_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def traced(layer: nn.Module) -> None:  # making kernels for a CPU takes a minute, and a compiler
        compiled.append(layer)
        compile_(layer, backend="eager")

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", traced)
    found = {}
    for name, flags in (("plain", {}), ("compiled", {"compile": True})):
        train(_recipe(home, tmp_path / name, run=flags))
        found[name] = load_file(tmp_path / name / FINAL / SAFETY_FILE)
    assert len(compiled) == workshop.LAYERS
    assert found["plain"].keys() == found["compiled"].keys()
    for name, weight in found["plain"].items():
        torch.testing.assert_close(found["compiled"][name], weight, rtol=1e-4, atol=1e-6)


def test_compiled_layers_and_packed_weights_are_refused_at_parsing(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.compile"):
        _recipe(home, tmp_path, model={"path": "base", "quantize": "nf4"}, run={"compile": True})


@pytest.mark.parametrize("bf16", [True, False])
def test_a_lora_under_autocast_drops_out_in_the_type_that_it_is_given(
    bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 it would make two copies of its input, each twice as large, and be brought back to bf16 at once."""
    recipe = bench.recipe_of(bench.SHAPES["tiny"], bench.MODES["stage2-lora"], bf16=bf16)
    model = bench.random_model(bench.SHAPES["tiny"], torch.device("cpu")).bfloat16()
    model = prepare(model, stage_of(recipe), recipe).train()
    seen: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == recipe.lora.dropout:
            module.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        bench.loss_of(model, bench.batch(bench.SHAPES["tiny"], model, 1, torch.device("cpu")), recipe.loss).backward()
    assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}


def test_training_keeps_no_cache_of_keys_and_values() -> None:
    """The Trainer turns it off in LLaVA's config, and the LLM asks its own."""
    shape, device = bench.SHAPES["tiny"], torch.device("cpu")
    model = bench.build(shape, bench.MODES["stage2-lora"], device)
    inputs = bench.batch(shape, model, 1, device)
    fed = {name: inputs[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    assert model(**fed).past_key_values is None
    assert model.eval()(**fed).past_key_values is not None, "generating needs it"


def test_layers_are_compiled_twice_however_many_there_are() -> None:
    shape, device = bench.SHAPES["tiny"], torch.device("cpu")
    deep = dataclasses.replace(shape, llm={**shape.llm, "num_hidden_layers": 12})
    model = bench.build(deep, bench.MODES["stage2-lora"], device)
    counter = CompileCounter()
    torch._dynamo.reset()
    for layer in parts.lm_layers(model.get_base_model()):
        layer.compile(backend=counter)
    bench.loss_of(model, bench.batch(deep, model, 1, device), bench.MODES["stage2-lora"].loss).backward()
    assert counter.frame_count <= 2, "the first one, whose input no gradient passes, and one for all others"
