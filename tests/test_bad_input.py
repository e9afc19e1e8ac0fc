"""What a user does wrong is told in one line: what, where, and how to mend it; and nothing half-written stays behind.

Every case runs the real command. Exit code 1: the run failed; 2: wrong usage.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from safevlm.__main__ import main
from safevlm.model import loading, saving
from safevlm.training import provenance
from tests import tiny
from tests.training import workshop

Capture = pytest.CaptureFixture[str]
ROWS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`: a stock LLaVA. Read only."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    return home


@pytest.fixture
def recipe(home: Path, tmp_path: Path) -> Path:
    """A recipe that would train six fresh records into `tmp_path/out`; the tests spoil one thing of it."""
    data = workshop.save_rows(tmp_path / "train.jsonl", workshop.rows(tmp_path, ROWS))
    resolved = workshop.recipe(home / "base", data, tmp_path / "out", optim={"batch_size": 2, "accumulation": 1})
    (tmp_path / "recipe.yaml").write_text(provenance.recipe_yaml(resolved), encoding="utf-8")
    return tmp_path / "recipe.yaml"


def _call(words: list[Any]) -> int | str | None:
    try:
        return main([str(word) for word in words])
    except SystemExit as left:
        return left.code


def _told(capsys: Capture, words: list[Any], *parts: str, code: int = 1) -> str:
    """Runs a command that must fail, and returns its one line."""
    capsys.readouterr()
    assert _call(words) == code
    said = capsys.readouterr()
    errors = [line for line in said.err.replace("\r", "\n").splitlines() if "error:" in line]
    assert len(errors) == 1, f"one line with the cause, not {len(errors)}:\n{said.err}"
    if code == 1:
        assert errors[0].startswith("error: ")
    assert "Traceback" not in said.err + said.out, "a user's mistake shows a traceback"
    assert said.err.rstrip().endswith(errors[0].rstrip()), "the cause must be the last thing on the screen"
    for part in parts:
        assert part in errors[0], f"the line must say {part!r}: {errors[0]}"
    return errors[0]


def _nothing_left(out: Path) -> None:
    left = workshop.file_bytes(out) if out.exists() else {}
    assert not left, f"half-written: {sorted(left)}"


def test_the_recipe_would_train(recipe: Path, tmp_path: Path) -> None:
    """Else all tests below could fail for another reason than theirs."""
    assert _call(["train", recipe]) == 0
    assert loading.load(tmp_path / "out").kind == "safety"


# Images


def _png(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than it holds."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 99)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


IMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zero bytes": (lambda data: b"", "empty"),
    "truncated": (lambda data: data[: len(data) // 2], "broken or truncated"),
    "not an image": (lambda data: b"hello", "not an image"),
    "larger than the limit": (lambda data: _png(9_000, 9_000), "scale it down"),
    "a bomb": (lambda data: _png(50_000, 50_000), "scale it down"),
}


@pytest.mark.parametrize("verify", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", IMAGES)
def test_bad_image_in_training_data(recipe: Path, tmp_path: Path, capsys: Capture, kind: str, verify: bool) -> None:
    spoil, cause = IMAGES[kind]
    image = tmp_path / "train" / "00003.png"
    image.write_bytes(spoil(image.read_bytes()))
    words = ["train", recipe, f"--data.verify_images={str(verify).lower()}"]
    _told(capsys, words, f"{tmp_path / 'train.jsonl'}:4: ", str(image), cause)
    _nothing_left(tmp_path / "out")


def test_unreadable_image_in_training_data(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    image = tmp_path / "train" / "00003.png"
    image.unlink()
    _told(capsys, ["train", recipe], f"{tmp_path / 'train.jsonl'}:4: ", str(image), "data.images")
    image.mkdir()
    _told(capsys, ["train", recipe], f"{tmp_path / 'train.jsonl'}:4: ", str(image))
    _nothing_left(tmp_path / "out")


# Records


def _spoil_row(data: Path, line: int, change: Callable[[dict[str, Any]], Any]) -> None:
    rows = [json.loads(text) for text in data.read_text(encoding="utf-8").splitlines()]
    change(rows[line - 1])
    workshop.save_rows(data, rows)


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "unknown safe_type": (lambda row: row.update(safe_type="porn"), ("unknown safe_type 'porn'", "one of", "illegal")),
    "unknown safe_level": (lambda row: row.update(safe_level=9), ("unknown safe_level 9", "one of", "must_refuse")),
    "too many images": (lambda row: row.update(image=[row["image"]] * 2), ("1 <image>", "2 images")),
    "no answer": (lambda row: row["conversations"].pop(), ("no answer",)),
    "answer first": (lambda row: row["conversations"].reverse(), ("turn 1 is an answer",)),
    "contradicting labels": (lambda row: row.update(safe_type="clean", safe_level="must_refuse"), ("together",)),
    "misspelt label": (lambda row: row.update(safetype="privacy"), ("'safetype'", "'safe_type'")),
    "unknown speaker": (lambda row: row["conversations"][1].update({"from": "bot"}), ("'bot'", "one of")),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_bad_record(recipe: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    change, parts = RECORDS[kind]
    _spoil_row(tmp_path / "train.jsonl", 5, change)
    _told(capsys, ["train", recipe], f"{tmp_path / 'train.jsonl'}:5: ", *parts)
    _nothing_left(tmp_path / "out")


def test_malformed_line(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "train.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join([*lines[:3], lines[3][:-20], *lines[4:]]), encoding="utf-8")
    _told(capsys, ["train", recipe], f"{data}:4: ", "malformed JSON")
    _nothing_left(tmp_path / "out")


def test_missing_and_empty_record_file(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("", encoding="utf-8")
    _told(capsys, ["train", recipe], str(data), "no records")
    data.unlink()
    _told(capsys, ["train", recipe], str(data), "no such record file")
    _nothing_left(tmp_path / "out")


def test_max_length_that_cuts_images(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    _told(
        capsys,
        ["train", recipe, "--data.max_length", "10"],
        f"{tmp_path / 'train.jsonl'}:",
        "10 tokens (data.max_length",
    )
    _nothing_left(tmp_path / "out")


# Recipes


@pytest.mark.parametrize(
    ("section", "key"), [("optim", "learning_rate"), ("run", "output"), ("loss", "head"), ("data", "path")]
)
def test_recipe_with_an_unknown_key(recipe: Path, tmp_path: Path, capsys: Capture, section: str, key: str) -> None:
    table = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    table[section][key] = 1
    recipe.write_text(yaml.safe_dump(table), encoding="utf-8")
    assert _call(["train", recipe]) == 2
    said = capsys.readouterr().err
    assert f"{section}.{key}" in said or key in said.splitlines()[-1], said
    assert "Traceback" not in said
    _nothing_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--optim.schedule", "zigzag"], "optim.schedule"),
        (["--run.deepspeed", "gone.json"], "gone.json"),
        (["--optim.batch_size", "0"], "optim.batch_size"),
        (["--optim.accumulation", "0"], "optim.accumulation"),
        (["--lora.r", "0", "--stage", "stage2"], "lora.r"),
        (["--model.safety.head_heads", "5"], "head_heads"),
        (["--model.safety.projector", "none", "--model.safety.lm_tokens", "0"], "model.safety"),
        (["--stage", "stage2", "--loss.lm", "0"], "loss.lm"),
    ],
)
def test_recipe_with_an_impossible_value(
    recipe: Path, tmp_path: Path, capsys: Capture, flags: list[str], part: str
) -> None:
    capsys.readouterr()
    assert _call(["train", recipe, *flags]) in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said and "error: " in said
    assert part in said.splitlines()[-1], said
    _nothing_left(tmp_path / "out")


def test_missing_recipe(tmp_path: Path, capsys: Capture) -> None:
    assert _call(["train", tmp_path / "gone.yaml"]) == 2
    assert "gone.yaml" in capsys.readouterr().err


def test_recipe_that_is_no_yaml(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe.write_text("stage: [stage1\n", encoding="utf-8")
    assert _call(["train", recipe]) == 2
    said = capsys.readouterr().err
    assert str(recipe) in said and "Traceback" not in said
    _nothing_left(tmp_path / "out")


# Checkpoints


def _without_projector(home: Path, to: Path) -> Path:
    folder = Path(shutil.copytree(home / "base", to / "half"))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "multi_modal_projector" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _commands(recipe: Path, folder: Path, out: Path) -> list[list[Any]]:
    return [
        ["train", recipe, f"--model.path={folder}"],
        ["chat", "--model", folder, "--ask", "Hello"],
        ["merge", folder, "--out", out],
    ]


def test_checkpoint_without_a_projector(home: Path, recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = _without_projector(home, tmp_path)
    for words in _commands(recipe, folder, tmp_path / "out"):
        _told(capsys, words, str(folder), "multi_modal_projector", "missing")
        _nothing_left(tmp_path / "out")


def test_missing_model_folder(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    for words in _commands(recipe, tmp_path / "gone", tmp_path / "out"):
        _told(capsys, words, str(tmp_path / "gone"), "no such folder")
        _nothing_left(tmp_path / "out")


def test_folder_that_is_no_checkpoint(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "thesis").mkdir()
    for words in _commands(recipe, tmp_path / "thesis", tmp_path / "out"):
        _told(capsys, words, str(tmp_path / "thesis"), "config.json")
        _nothing_left(tmp_path / "out")


def test_truncated_weights(home: Path, recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(home / "base", tmp_path / "cut"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    for words in _commands(recipe, folder, tmp_path / "out"):
        _told(capsys, words, str(folder), "cannot be loaded")
        _nothing_left(tmp_path / "out")


def test_merge_into_a_folder_in_use(home: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    _told(capsys, ["merge", home / "base", "--out", tmp_path / "out"], str(tmp_path / "out"), "not empty")
    assert workshop.file_bytes(tmp_path / "out") == {"mine.txt": b"mine"}


# Devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_where_none_is(home: Path, recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    _told(capsys, ["train", recipe, "--run.device", "cuda"], "no GPU", "--run.device cpu")
    _nothing_left(tmp_path / "out")
    _told(capsys, ["chat", "--model", home / "base", "--ask", "Hi", "--device", "cuda"], "no GPU", "--device cpu")


# Chatting


@pytest.fixture(scope="module")
def guarded(home: Path) -> Path:
    """A checkpoint with a head, so that the guard is on."""
    loaded = loading.load(home / "base", safety=tiny.safety_config())
    (home / "guarded").mkdir()
    saving.save(loaded, loaded.model, home / "guarded")
    return home / "guarded"


def test_chat_about_a_missing_image(guarded: Path, tmp_path: Path, capsys: Capture) -> None:
    image = tmp_path / "gone.png"
    for ask in (["--ask", "What is it?"], []):
        _told(capsys, ["chat", "--model", guarded, "--image", image, *ask], str(image), "no such image file")


@pytest.mark.parametrize("kind", IMAGES)
def test_chat_about_a_bad_image(guarded: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    spoil, cause = IMAGES[kind]
    image = tmp_path / "bad.png"
    image.write_bytes(spoil(bytes(range(256)) * 4) if kind != "truncated" else _png(50, 50))
    _told(capsys, ["chat", "--model", guarded, "--image", image, "--ask", "What is it?"], str(image), cause)


def test_chat_behind_an_unknown_defense(guarded: Path, capsys: Capture) -> None:
    _told(capsys, ["chat", "--model", guarded, "--defense", "magic", "--ask", "Hi"], "magic", "safety-head", code=2)


def test_chat_with_a_policy_that_is_missing_or_wrong(guarded: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["chat", "--model", guarded, "--ask", "Hi", "--policy"]
    _told(capsys, [*words, tmp_path / "gone.yaml"], "gone.yaml")
    (tmp_path / "policy.yaml").write_text("nonsense: [", encoding="utf-8")
    _told(capsys, [*words, tmp_path / "policy.yaml"], str(tmp_path / "policy.yaml"))


# Commands


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["chat"], ["merge", "x"], ["chat", "--model", "x", "--temperatur", "1"]]
)
def test_wrong_usage_exits_with_2(capsys: Capture, words: list[str]) -> None:
    assert _call(words) == 2
    said = capsys.readouterr().err
    assert "error:" in said and ("usage" in said or "--model" in said)
