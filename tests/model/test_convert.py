"""Converting original LLaVA-v1.5 folders: same prompt and image, same logits; what does not fit is an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_patch.original import assembly
from llava_patch.original import config as configs
from safevlm.__main__ import main
from safevlm.data import chat, chat_messages
from safevlm.model import convert, loading
from safevlm.model.checkpoint_folder import CheckpointError
from safevlm.types import Request
from tests import originals
from tests.originals import Original

TOLERANCE = 1e-4
"""Largest difference of a logit in float32; the logits' scale is about 1."""
QUESTION = "What is in the picture?"
Setup = Callable[[Path, Original], tuple[Path, dict[str, Path]]]


def _full(form: str, tower: bool) -> Setup:
    def setup(home: Path, made: Original) -> tuple[Path, dict[str, Path]]:
        sizes = originals.write_tower(home / "clip", made, weights=not tower)
        return originals.write_full(home / "src", made, form, tower), {"vision_tower": sizes}

    return setup


def _projector(home: Path, made: Original) -> tuple[Path, dict[str, Path]]:
    base, tower = originals.write_vicuna(home / "vicuna", made), originals.write_tower(home / "clip", made, full=False)
    return originals.write_projector(home / "src", made), {"base": base, "vision_tower": tower}


def _lora(base: str = "vicuna", form: str = "bin", default: bool = False, **fields: Any) -> Setup:
    def setup(home: Path, made: Original) -> tuple[Path, dict[str, Path]]:
        write = {"vicuna": originals.write_vicuna, "llava": originals.write_full}[base]
        below, tower = write(home / "base", made), originals.write_tower(home / "clip", made)
        with torch.no_grad():
            for weight in made.projector.parameters():  # trained along with the LoRA
                weight += 0.1
        source = originals.write_lora(home / "src", made, form, default, **fields)
        return source, {"base": below, "vision_tower": tower}

    return setup


VARIANTS: dict[str, tuple[Setup, str]] = {
    "full, .bin shards, tower apart": (_full("bin", tower=False), "mlp2x_gelu"),
    "full, one .bin, tower apart": (_full("single", tower=False), "mlp2x_gelu"),
    "full, safetensors, tower inside": (_full("safetensors", tower=True), "mlp2x_gelu"),
    "full, linear projector": (_full("bin", tower=True), "linear"),
    "full, mlp1x projector": (_full("bin", tower=True), "mlp1x_gelu"),
    "projector only": (_projector, "mlp2x_gelu"),
    "projector only, linear": (_projector, "linear"),
    "LoRA .bin on Vicuna": (_lora(), "mlp2x_gelu"),
    "LoRA .safetensors on Vicuna": (_lora(form="safetensors", default=True), "mlp2x_gelu"),
    "LoRA on LLaVA, rank-stabilised": (_lora("llava", use_rslora=True), "mlp2x_gelu"),
}


def _image_prompt(processor: Any) -> str:
    return chat.prompt_text(processor, Request(QUESTION, images=("",)))


@torch.no_grad()
def _difference(folder: Path, made: Original, image: Image.Image, pad: bool = True) -> float:
    """Largest difference of a logit between the original code and the converted folder, words and images."""
    loaded = loading.load(folder)
    vocabulary, worst = made.llm.config.vocab_size, 0.0
    for text in (_image_prompt(loaded.processor), "USER: hello </s>USER: describe the ball ASSISTANT:"):
        has_image = "<image>" in text
        inputs = loaded.processor(text=text, images=[image] if has_image else None, return_tensors="pt")
        ours = loaded.model(**inputs).logits[0]
        theirs = made.logits(originals.ids_of(text), originals.pixels_of(image, pad) if has_image else None)
        assert len(ours) == len(theirs), "the prompts differ in length"
        worst = max(worst, (ours[:, :vocabulary] - theirs).abs().max().item())
    return worst


@pytest.fixture
def full(tmp_path: Path) -> tuple[Original, Path, Path]:
    """A full original, its folder, and its tower's folder."""
    made = originals.make()
    source, options = _full("bin", tower=False)(tmp_path, made)
    return made, source, options["vision_tower"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full original, converted. Read only."""
    home = tmp_path_factory.mktemp("converted")
    source, options = _full("bin", tower=False)(home, originals.make())
    convert.convert(source, home / "out", **options)
    return home / "out"


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _table(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _edit(file: Path, **changes: Any) -> None:
    originals.write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **changes})


# Logits


@pytest.mark.parametrize("name", VARIANTS)
def test_converted_logits_equal_the_originals(tmp_path: Path, name: str) -> None:
    setup, projector = VARIANTS[name]
    made = originals.make(projector)
    source, options = setup(tmp_path, made)
    report = convert.convert(source, tmp_path / "out", **options)
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE
    assert report.kind == name.split(",")[0].split()[0].lower()
    assert report.folded == (7 * originals.LAYERS if report.kind == "lora" else 0)


@pytest.mark.parametrize(
    ("fields", "pad"),
    [
        ({"mm_vision_select_feature": "cls_patch"}, True),
        ({"mm_vision_select_layer": -1}, True),
        ({"image_aspect_ratio": "square"}, False),
        ({"image_aspect_ratio": None}, False),
        ({"model_type": "llava_llama"}, True),
    ],
)
def test_what_the_config_says_is_kept(tmp_path: Path, fields: dict[str, Any], pad: bool) -> None:
    made = originals.make(**fields)
    source, options = _full("bin", tower=False)(tmp_path, made)
    convert.convert(source, tmp_path / "out", **options)
    assert _difference(tmp_path / "out", made, originals.image(50, 30), pad) <= TOLERANCE


def test_scaled_rope_is_kept(tmp_path: Path) -> None:
    """Long-context Vicunas."""
    made = originals.make()
    source, options = _full("bin", tower=False)(tmp_path, made)
    _edit(source / "config.json", rope_scaling={"type": "linear", "factor": 4.0})
    convert.convert(source, tmp_path / "out", **options)
    rope = loading.load(tmp_path / "out").model.config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 4.0, 5000.0)
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) > 1e-3, "the scaling has no effect"


def test_a_lora_that_is_not_folded_would_show(tmp_path: Path) -> None:
    made = originals.make()
    source, options = _lora()(tmp_path, made)
    convert.convert(source, tmp_path / "out", **options)
    before = originals.make()
    before.projector = made.projector
    assert _difference(tmp_path / "out", before, originals.image(50, 30)) > 0.01


def test_tuned_tower_wins_over_the_published_one(tmp_path: Path) -> None:
    made = originals.make()
    tower = originals.write_tower(tmp_path / "clip", originals.make(seed=1))
    source = originals.write_full(tmp_path / "src", made, tower=True)
    convert.convert(source, tmp_path / "out", vision_tower=tower)
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE


def test_tower_that_the_config_names_is_found(tmp_path: Path) -> None:
    made = originals.make()
    tower = originals.write_tower(tmp_path / "clip", made)
    made.table["mm_vision_tower"] = str(tower)
    convert.convert(originals.write_full(tmp_path / "src", made), tmp_path / "out")
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE


def test_known_tower_needs_no_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and preprocessing of OpenAI's towers are known; here those of the tiny one stand in for them."""
    made = originals.make(mm_vision_tower="openai/clip-vit-large-patch14-336")
    sizes = {name: getattr(made.tower.config, name) for name in configs.CLIP_LARGE}
    monkeypatch.setattr(configs, "CLIP_LARGE", sizes)
    own = {"image_size": originals.SIDE, "patch_size": originals.PATCH}
    monkeypatch.setitem(configs.TOWERS, "clip-vit-large-patch14-336", own)
    convert.convert(originals.write_full(tmp_path / "src", made, tower=True), tmp_path / "out")
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE


# Images


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (64, 64), (33, 32), (32, 32), (7, 300)])
@pytest.mark.parametrize("pad", [True, False])
def test_pixels_equal_the_originals(tmp_path: Path, converted: Path, size: tuple[int, int], pad: bool) -> None:
    """Exact up to float32: both resize with Pillow, on the same bytes."""
    if not pad:
        made = originals.make(image_aspect_ratio="square")
        source, options = _full("bin", tower=False)(tmp_path, made)
        convert.convert(source, tmp_path / "out", **options)
    processor = loading.load(converted if pad else tmp_path / "out").processor
    image = originals.image(*size)
    ours = processor(text="<image>", images=[image], return_tensors="pt")["pixel_values"]
    assert torch.allclose(ours, originals.pixels_of(image, pad), atol=1e-5)


def test_padding_survives_saving_and_auto_loading(converted: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(converted)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    for one in (processor, again):
        assert type(one.image_processor).__name__ == "LlavaImageProcessorPil"
        assert one.image_processor.do_pad is True
        assert (one.patch_size, one.num_additional_image_tokens) == (originals.PATCH, 1)
        assert one.vision_feature_select_strategy == "default"
        assert one.chat_template == chat.CHAT_TEMPLATE


# Files


def test_disk_has_the_names_of_llava_hf(converted: Path) -> None:
    names = set(_tensors(converted))
    assert {name.split(".")[0] for name in names} == {"language_model", "multi_modal_projector", "vision_tower"}
    for name in (
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.linear_2.bias",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "vision_tower.vision_model.post_layernorm.weight",
    ):
        assert name in names
    assert not any("inv_freq" in name or "position_ids" in name for name in names)


def test_stock_class_gives_the_same_logits(converted: Path) -> None:
    stock, info = LlavaForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    loaded = loading.load(converted)
    text = _image_prompt(loaded.processor)
    inputs = loaded.processor(text=text, images=[originals.image(50, 30)], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(stock.eval()(**inputs).logits, loaded.model(**inputs).logits)


def test_small_shards_have_an_index_and_equal_one_file(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    made, source, tower = full
    convert.convert(source, tmp_path / "one", vision_tower=tower)
    convert.convert(source, tmp_path / "many", vision_tower=tower, shard_bytes=60_000)
    one, many = _tensors(tmp_path / "one"), _tensors(tmp_path / "many")
    index = _table(tmp_path / "many", "model.safetensors.index.json")
    assert (tmp_path / "one" / "model.safetensors").is_file()
    assert set(index["weight_map"]) == set(one) and len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert _difference(tmp_path / "many", made, originals.image(50, 30)) <= TOLERANCE


def test_new_rows_are_the_mean_of_the_old_ones(converted: Path) -> None:
    made, tensors = originals.make(), _tensors(converted)
    for name, old in (
        ("language_model.model.embed_tokens.weight", made.llm.model.embed_tokens.weight),
        ("language_model.lm_head.weight", made.llm.lm_head.weight),
    ):
        assert tensors[name].shape == (448, originals.WIDTH), "420 and two, up to a multiple of 64"
        assert torch.equal(tensors[name][:420], old)
        assert torch.allclose(tensors[name][420:], old.mean(0).expand(28, -1), atol=1e-6)
    table = _table(converted, "config.json")
    assert (table["image_token_index"], table["pad_token_id"], table["text_config"]["vocab_size"]) == (420, 421, 448)


def test_converting_twice_gives_the_same_bytes(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    _, source, tower = full
    for name in ("a", "b"):
        convert.convert(source, tmp_path / name, vision_tower=tower)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_that_of_the_weights_and_the_config(
    full: tuple[Original, Path, Path], tmp_path: Path, dtype: str
) -> None:
    _, source, tower = full
    report = convert.convert(source, tmp_path / "out", vision_tower=tower, dtype=dtype)
    assert report.dtype == dtype == _table(tmp_path / "out", "config.json")["dtype"]
    assert {tensor.dtype for tensor in _tensors(tmp_path / "out").values()} == {convert.DTYPES[dtype]}


def test_generation_config_is_one_that_can_be_saved(converted: Path) -> None:
    """A temperature without sampling is refused by transformers on the next save (base facts §1, row 11)."""
    table = _table(converted, "generation_config.json")
    assert (table["bos_token_id"], table["eos_token_id"], table["pad_token_id"]) == (1, 2, 421)
    assert not {"temperature", "top_p", "max_length"} & {key for key, value in table.items() if value is not None}
    loading.load(converted).model.generation_config.validate(strict=True)


def test_sampling_that_is_meant_is_kept(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    _, source, tower = full
    _edit(source / "generation_config.json", do_sample=True)
    convert.convert(source, tmp_path / "out", vision_tower=tower)
    table = _table(tmp_path / "out", "generation_config.json")
    assert (table["do_sample"], table["temperature"], table["top_p"]) == (True, 0.9, 0.6)


def test_converted_folder_needs_no_sentencepiece(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    loaded = loading.load(converted)
    assert loaded.processor.tokenizer("hello")["input_ids"] == originals.ids_of("hello")


def test_labels_are_the_answers_words(converted: Path) -> None:
    """The template's answer mask rests on offsets, which the tokenizer's rules move."""
    processor = loading.load(converted).processor
    turns = [
        chat_messages.user(QUESTION, 1),
        chat_messages.assistant("a red ball."),
        chat_messages.user("hello"),
        chat_messages.assistant("hello world"),
    ]
    encoded = chat.encode_dialogues(processor, [turns], [[originals.image(40, 40)]])
    answer = encoded["input_ids"][encoded["assistant_masks"].bool()]
    assert processor.tokenizer.decode(answer) == "a red ball.</s> hello world</s>"
    text = chat.dialogue_text(processor, turns)
    ids = encoded["input_ids"][0].tolist()
    slots = loading.load(converted).safe_llava.slots
    assert ids == [token for one in originals.ids_of(text, image=420) for token in [one] * (slots if one == 420 else 1)]


# Errors


def _error(source: Path, out: Path, *parts: str, **options: Any) -> str:
    """One line that says what is wrong; nothing is left under `--out`."""
    with pytest.raises(ValueError) as error:
        convert.convert(source, out, **options)
    message = str(error.value)
    for part in parts:
        assert part in message, f"the message must say {part!r}: {message}"
    assert not out.exists() and not list(out.parent.glob(".*"))
    return message


def test_missing_tower_is_an_error_with_the_command(tmp_path: Path) -> None:
    source = originals.write_full(tmp_path / "src", originals.make())
    _error(source, tmp_path / "out", "--vision-tower DIR", "hf download openai/clip-vit-tiny --local-dir DIR")


def test_known_tower_without_weights_is_an_error_with_the_command(tmp_path: Path) -> None:
    made = originals.make(mm_vision_tower="openai/clip-vit-large-patch14-336")
    source = originals.write_full(tmp_path / "src", made)
    _error(source, tmp_path / "out", "391 weights missing", "--vision-tower DIR", "clip-vit-large-patch14-336")


@pytest.mark.parametrize("write", [originals.write_projector, originals.write_lora])
def test_missing_base_is_an_error(tmp_path: Path, write: Callable[..., Path]) -> None:
    made = originals.make()
    tower = originals.write_tower(tmp_path / "clip", made)
    made.table["_name_or_path"] = "lmsys/vicuna-13b-v1.5"
    source = write(tmp_path / "src", made)
    _error(source, tmp_path / "out", "--base DIR", "hf download lmsys/vicuna-13b-v1.5", vision_tower=tower)
    _edit(source / "config.json", _name_or_path="./checkpoints/vicuna")
    _error(source, tmp_path / "out", "hf download lmsys/vicuna-7b-v1.5", vision_tower=tower)


@pytest.mark.parametrize(
    ("said", "own", "fits"),
    [
        ("lmsys/vicuna-7b-v1.5", "liuhaotian/llava-v1.5-7b", False),
        ("lmsys/vicuna-7b-v1.5", "vicuna-7b-v1.5", True),
        ("lmsys/vicuna-7b-v1.5", "/data/some vicuna", True),
        ("/data/vicuna", "vicuna-7b-v1.5", True),
        ("lmsys/vicuna-7b-v1.5", None, True),
    ],
)
def test_a_lora_on_a_base_that_calls_itself_otherwise_is_an_error(
    tmp_path: Path, said: str, own: str | None, fits: bool
) -> None:
    """Names are all that an original LoRA knows of its base; paths of somebody's disk tell nothing."""
    made = originals.make()
    source = originals.write_lora(tmp_path / "src", made)
    base, tower = originals.write_vicuna(tmp_path / "base", made), originals.write_tower(tmp_path / "clip", made)
    _edit(source / "adapter_config.json", base_model_name_or_path=said)
    _edit(base / "config.json", _name_or_path=own)
    if fits:
        assert convert.convert(source, tmp_path / "out", base=base, vision_tower=tower).kind == "lora"
    else:
        _error(source, tmp_path / "out", f"--base {base}", own or "", said, base=base, vision_tower=tower)


def test_base_for_a_full_folder_is_an_error(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    _error(full[1], tmp_path / "out", "leave --base out", base=full[1], vision_tower=full[2])


def _change_bin(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)


def _rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no projector": (lambda t: [t.pop(n) for n in list(t) if "mm_projector" in n], "4 weights missing (multi_modal"),
    "no layer": (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight"),
    "no head": (lambda t: t.pop("lm_head.weight"), "lm_head.weight"),
    "no embeddings": (lambda t: t.pop("model.embed_tokens.weight"), "embed_tokens"),
    "a third layer": (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(2)}), "unexpected"),
    "unknown name": (lambda t: t.update({"model.mm_resampler.query": torch.ones(2)}), "'model.mm_resampler.query'"),
    "wrong prefix": (
        lambda t: _rename(t, "model.mm_projector.0.bias", "module.mm_projector.0.bias"),
        "'module.mm_projector.0.bias'",
    ),
    "other shape": (lambda t: t.update({"model.mm_projector.0.bias": torch.ones(7)}), "linear_1.bias is (7,)"),
    "not finite": (lambda t: t["model.norm.weight"].fill_(float("nan")), "not finite"),
    "no tensor": (lambda t: t.update({"model.norm.weight": {"a": 1}}), "tensors by name"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_do_not_fit_are_an_error(tmp_path: Path, name: str) -> None:
    change, part = CHANGES[name]
    made = originals.make()
    source, options = _full("single", tower=False)(tmp_path, made)
    _change_bin(source / "pytorch_model.bin", change)
    _error(source, tmp_path / "out", str(source), part, **options)


def test_missing_shard_is_an_error(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    _, source, tower = full
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    _error(source, tmp_path / "out", "weight files are missing (pytorch_model-00002-of-00003.bin)", vision_tower=tower)


def test_shard_that_differs_from_the_index_is_an_error(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    _, source, tower = full
    _change_bin(source / "pytorch_model-00002-of-00003.bin", lambda tensors: tensors.pop(next(iter(tensors))))
    _error(source, tmp_path / "out", "not where the index says", vision_tower=tower)


def test_truncated_shard_is_an_error(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    _, source, tower = full
    file = source / "pytorch_model-00002-of-00003.bin"
    file.write_bytes(file.read_bytes()[:2000])
    _error(source, tmp_path / "out", str(file), vision_tower=tower)


LORA_DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no projector": (lambda folder: (folder / "non_lora_trainables.bin").unlink(), "non_lora_trainables.bin: missing"),
    "no adapter": (lambda folder: (folder / "adapter_model.bin").unlink(), "the LoRA is incomplete"),
    "no B": (
        lambda folder: _change_bin(
            folder / "adapter_model.bin", lambda t: t.pop("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight")
        ),
        "layers.0.mlp.up_proj.weight",
    ),
    "unknown layer": (
        lambda folder: _change_bin(
            folder / "adapter_model.bin",
            lambda t: [_rename(t, n, n.replace("layers.0", "layers.7")) for n in list(t) if "layers.0.mlp.up" in n],
        ),
        "which the base does not have",
    ),
    "embedding": (
        lambda folder: _change_bin(
            folder / "adapter_model.bin", lambda t: t.update({"base_model.model.x.lora_embedding_A": torch.ones(2)})
        ),
        "unexpected",
    ),
    "bias": (lambda folder: _edit(folder / "adapter_config.json", bias="all"), "bias 'all'"),
    "DoRA": (lambda folder: _edit(folder / "adapter_config.json", use_dora=True), "use_dora"),
    "no alpha": (lambda folder: _edit(folder / "adapter_config.json", lora_alpha=None), "lora_alpha"),
}


@pytest.mark.parametrize("name", LORA_DAMAGE)
def test_lora_that_does_not_fit_is_an_error(tmp_path: Path, name: str) -> None:
    damage, part = LORA_DAMAGE[name]
    source, options = _lora()(tmp_path, originals.make())
    damage(source)
    _error(source, tmp_path / "out", part, **options)


def test_lora_for_transposed_weights_is_transposed(tmp_path: Path) -> None:
    """Square layers would hide it; the rest do not fit and say so."""
    source, options = _lora()(tmp_path, originals.make())
    _edit(source / "adapter_config.json", fan_in_fan_out=True)
    _error(source, tmp_path / "out", "the LoRA on", **options)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "mlp3x_gelu"),
        ({"mm_projector_type": "identity"}, "identity"),
        ({"image_aspect_ratio": "anyres"}, "anyres"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
        ({"model_type": "llava_mpt"}, "llava_mpt"),
        ({"num_hidden_layers": 3}, "9 weights missing"),
        ({"hidden_size": 128}, "config.json says"),
    ],
)
def test_what_cannot_be_expressed_is_an_error(
    full: tuple[Original, Path, Path], tmp_path: Path, fields: dict[str, Any], part: str
) -> None:
    _, source, tower = full
    _edit(source / "config.json", **fields)
    _error(source, tmp_path / "out", part, vision_tower=tower)


def test_other_folders_are_named_for_what_they_are(converted: Path, tmp_path: Path) -> None:
    vicuna = originals.write_vicuna(tmp_path / "vicuna", originals.make())
    _error(converted, tmp_path / "out", "transformers' layout already")
    _error(vicuna, tmp_path / "out", "--base")
    _error(tmp_path / "nothing", tmp_path / "out", "no such folder")
    (tmp_path / "empty").mkdir()
    _error(tmp_path / "empty", tmp_path / "out", "no config.json")


def test_missing_tokenizer_names_the_flag_and_the_flag_works(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    made, source, tower = full
    (source / "tokenizer.model").unlink()
    _error(source, tmp_path / "out", "--tokenizer DIR", vision_tower=tower)
    originals.write_tokenizer(tmp_path / "words")
    convert.convert(source, tmp_path / "out", vision_tower=tower, tokenizer=tmp_path / "words")
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE


def test_tokenizer_larger_than_the_model_is_an_error(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    _, source, tower = full
    originals.write_json(source / "added_tokens.json", {"<im_patch>": 420})
    _error(source, tmp_path / "out", "421 tokens", "rows for 420", vision_tower=tower)


@pytest.mark.parametrize(
    ("added", "rows", "image", "pad"),
    [
        ({"<im_patch>": 420}, 421, 421, 422),
        ({"<pad>": 420}, 421, 421, 420),
        ({}, 500, 420, 421),
        ({"[PAD]": 420}, 448, 421, 422),
    ],
)
def test_vocabulary_that_has_grown_before_keeps_its_ids(
    tmp_path: Path, added: dict[str, int], rows: int, image: int, pad: int
) -> None:
    made = originals.make(vocab_size=rows)
    made.llm.resize_token_embeddings(rows, mean_resizing=False)
    source, options = _full("bin", tower=False)(tmp_path, made)
    originals.write_json(source / "added_tokens.json", added)
    convert.convert(source, tmp_path / "out", **options)
    table = _table(tmp_path / "out", "config.json")
    assert (table["image_token_index"], table["pad_token_id"]) == (image, pad)
    tokenizer = loading.load(tmp_path / "out").processor.tokenizer
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in added} == added
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE


def test_what_lies_on_disk_is_read_again(
    full: tuple[Original, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = assembly.write

    def damaged(folder: Path, *rest: Any) -> None:
        real(folder, *rest)
        tensors = _tensors(folder)
        tensors.pop("language_model.lm_head.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(assembly, "write", damaged)
    _error(full[1], tmp_path / "out", "lm_head.weight", vision_tower=full[2])


def test_folder_in_use_is_refused(full: tuple[Original, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        convert.convert(full[1], out, vision_tower=full[2])
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]


class _Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["mm_projector.bin", "non_lora_trainables.bin", "adapter_model.bin"])
def test_foreign_pickle_is_never_executed(tmp_path: Path, name: str) -> None:
    made = originals.make()
    source, options = (_projector if name == "mm_projector.bin" else _lora())(tmp_path, made)
    torch.save({"model.mm_projector.0.weight": _Bomb(tmp_path / "executed")}, source / name)
    _error(source, tmp_path / "out", name, **options)
    assert not (tmp_path / "executed").exists(), "code inside a checkpoint was executed"


def test_pickle_of_old_torch_is_read(tmp_path: Path) -> None:
    made = originals.make()
    source, options = _projector(tmp_path, made)
    weights = originals.projector_weights(made)
    torch.save(weights, source / "mm_projector.bin", _use_new_zipfile_serialization=False)
    convert.convert(source, tmp_path / "out", **options)
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE


@pytest.mark.parametrize("write", [originals.write_full, originals.write_projector, originals.write_lora])
def test_loading_an_original_says_to_convert_it(tmp_path: Path, write: Callable[..., Path]) -> None:
    source = write(tmp_path / "src", originals.make())
    with pytest.raises(CheckpointError, match="original LLaVA-v1.5 folder; convert it first: safevlm convert"):
        loading.load(source)


# The command


def test_command_converts_and_says_what_it_did(
    full: tuple[Original, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, source, tower = full
    words = ["convert", str(source), "--out", str(tmp_path / "out"), "--vision-tower", str(tower), "--dtype", "float32"]
    assert main(words) == 0
    line = capsys.readouterr().out
    assert "converted (full)" in line and "in float32" in line and "padded to a square" in line
    assert _difference(tmp_path / "out", made, originals.image(50, 30)) <= TOLERANCE
    assert main(words) == 1
    assert capsys.readouterr().err.startswith("error: --out ")
