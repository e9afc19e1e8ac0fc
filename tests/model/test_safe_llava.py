"""SafeLlava is a LLaVA: stock weights in and out, stock logits where nothing is added, one vision pass per image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration

from safevlm.model.head import SafetyHead
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig, SafeLlavaOutput
from safevlm.model.safety_modules import PREFIX, is_safety_name
from safevlm.model.tokens import STD, TokenBank
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE, Category, Level, Taxonomy
from tests import tiny

KINDS = ["c_abstractor", "resampler", "mlp"]


@pytest.fixture(scope="module")
def stock() -> LlavaForConditionalGeneration:
    return tiny.stock_llava()


@pytest.fixture(scope="module")
def stock_folder(stock: LlavaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    stock.save_pretrained(folder)
    return folder


@torch.no_grad()
def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


@contextmanager
def _tower_calls(model: LlavaForConditionalGeneration) -> Iterator[list[int]]:
    """Images per call of the vision tower."""
    calls: list[int] = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    yield calls
    handle.remove()


# --- stock in ---------------------------------------------------------------------------------------------------------


def test_stock_checkpoint_misses_exactly_the_safety_weights(stock_folder: Path) -> None:
    config = tiny.safe_config(AutoConfig.from_pretrained(stock_folder))
    model, info = SafeLlava.from_pretrained(stock_folder, config=config, output_loading_info=True)
    ours = {name for name in model.state_dict() if name.startswith(PREFIX)}
    assert ours
    assert set(info["missing_keys"]) == ours
    assert not info["unexpected_keys"], f"stock weights that found no place: {info['unexpected_keys']}"
    assert not info["mismatched_keys"]


@pytest.mark.parametrize("images", [[1], [1, 0, 2], [0, 0]])
def test_stock_checkpoint_gives_stock_logits(
    stock: LlavaForConditionalGeneration, stock_folder: Path, images: list[int]
) -> None:
    # Without the conversion mapping lm_head is random, quietly; a round trip of our own does not show it.
    model = tiny.safe_llava(stock_folder, **tiny.BARE)
    inputs = tiny.batch(images, tiny.PATCHES)
    assert torch.equal(_logits(model, inputs), _logits(stock, inputs)), "logits differ from stock: is lm_head random?"


def test_stock_folder_without_a_safety_config_is_a_stock_llava(
    stock: LlavaForConditionalGeneration, stock_folder: Path
) -> None:
    model = SafeLlava.from_pretrained(stock_folder).eval()
    inputs = tiny.batch([1, 2], tiny.PATCHES)
    assert not [name for name in model.state_dict() if name.startswith(PREFIX)]
    assert torch.equal(_logits(model, inputs), _logits(stock, inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_head_without_lm_tokens_leaves_logits_untouched(stock: LlavaForConditionalGeneration, kind: str) -> None:
    model = tiny.safe_llava(stock, projector=kind, lm_tokens=0)
    inputs = tiny.batch([1, 0, 2], tiny.PATCHES)
    with torch.no_grad():
        judged = model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    assert judged.level_logits.shape == (3, 4)
    assert torch.equal(judged.logits, _logits(stock, inputs)), "asking the head changed the answer"


@pytest.mark.parametrize(
    "fields",
    [{"vision_feature_layer": [-2, -1]}, {"vision_feature_layer": 1}, {"vision_feature_select_strategy": "full"}],
)
def test_every_way_of_selecting_features_gives_stock_logits(fields: dict) -> None:
    stock = tiny.stock_llava(**fields)
    model = tiny.safe_llava(stock, projector="mlp", lm_tokens=0)
    inputs = tiny.batch([1, 2], model.slots)
    assert torch.equal(_logits(model, inputs), _logits(stock, inputs))


def test_building_does_not_touch_the_stock_config(stock: LlavaForConditionalGeneration) -> None:
    before = copy.deepcopy(stock.config.to_dict())
    model = tiny.safe_llava(stock.config, projector_width=24)
    assert stock.config.to_dict() == before
    assert type(stock.config).model_type == "llava"
    model.config.text_config.hidden_size = 1
    model.config.vision_config.hidden_size = 1
    assert stock.config.to_dict() == before, "our config shares its parts with the stock config"


# --- save and load ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "reads_text"), [("c_abstractor", True), ("resampler", False), ("none", False)])
def test_save_and_load_is_bitwise(kind: str, reads_text: bool, tmp_path: Path) -> None:
    model = tiny.safe_llava(projector=kind, reads_text=reads_text)
    model.save_pretrained(tmp_path)
    loaded, info = SafeLlava.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    _assert_same_tensors(loaded, model)
    inputs = tiny.batch([1, 2], model.slots)
    assert torch.equal(_logits(loaded.eval(), inputs), _logits(model, inputs))


@pytest.mark.parametrize(("kind", "reads_text"), [("c_abstractor", True), ("resampler", False), ("mlp", False)])
def test_trained_safety_weights_survive_from_pretrained(kind: str, reads_text: bool, tmp_path: Path) -> None:
    model = tiny.safe_llava(projector=kind, reads_text=reads_text)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(PREFIX):
                weight.fill_(0.125)
    model.save_pretrained(tmp_path)
    loaded = SafeLlava.from_pretrained(tmp_path)
    wiped = [name for name, weight in loaded.named_parameters() if name.startswith(PREFIX) and (weight != 0.125).any()]
    assert not wiped, f"initialised again on load, training lost: {wiped}"
    _assert_same_tensors(loaded, model)


def test_stock_class_reads_our_folder(tmp_path: Path) -> None:
    model = tiny.safe_llava(lm_tokens=0)
    model.save_pretrained(tmp_path)
    config = tiny.stock_config()
    stock, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not info["missing_keys"], f"stock weights that our folder lacks or names otherwise: {info['missing_keys']}"
    assert {name.split(".")[0] for name in info["unexpected_keys"]} == {"safety_projector", "safety_head"}
    inputs = tiny.batch([1, 2], tiny.PATCHES)
    assert torch.equal(_logits(stock.eval(), inputs), _logits(model, inputs))


def test_our_files_keep_stock_names_on_disk(stock_folder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    tiny.safe_llava(stock_folder).save_pretrained(tmp_path)
    names = []
    for folder in (stock_folder, tmp_path):
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    stock, ours = names
    assert stock <= ours, f"renamed on disk: {stock - ours}"
    assert all(name.startswith(PREFIX) for name in ours - stock), ours - stock


def test_auto_classes_know_our_folder(tmp_path: Path) -> None:
    model = tiny.safe_llava(reads_text=True)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SafeLlavaConfig
    assert config.safety_config == model.config.safety_config
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is SafeLlava
    _assert_same_tensors(loaded, model)


def test_custom_taxonomy_sets_the_heads_sizes_and_survives(tmp_path: Path) -> None:
    taxonomy = Taxonomy(
        categories=(*(Category(name, f"{name} things") for name in ("fire", "water", "dogs", "cats")), Category(CLEAN)),
        levels=(Level(SAFE), Level("hmm", "Mind {topic}."), Level("no", "Refuse {topic}.")),
    )
    model = tiny.safe_llava(taxonomy=taxonomy.to_dict())
    model.save_pretrained(tmp_path)
    loaded = SafeLlava.from_pretrained(tmp_path)
    assert loaded.config.taxonomy == taxonomy
    assert loaded.safety_head.category.out_features == 5
    assert loaded.safety_head.level.out_features == 3
    inputs = tiny.batch([1], loaded.slots)
    output = loaded(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    assert output.category_logits.shape == (1, 5) and output.level_logits.shape == (1, 3)


def test_default_taxonomy_is_written_out_with_its_names(tmp_path: Path) -> None:
    tiny.safe_llava().save_pretrained(tmp_path)
    table = AutoConfig.from_pretrained(tmp_path).safety["taxonomy"]
    assert table is not None, "a checkpoint must name its classes itself; the code's default may change"
    assert Taxonomy.from_dict(table) == DEFAULT


def _assert_same_tensors(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"not bitwise equal after the round trip: {different}"
    buffers = dict(other.named_buffers())
    garbage = [name for name, buffer in one.named_buffers() if not torch.equal(buffer, buffers[name])]
    assert not garbage, f"buffers not restored on load: {garbage}"


# --- weights that a stock checkpoint lacks ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "reads_text"), [*((kind, False) for kind in KINDS), ("c_abstractor", True)])
def test_weights_missing_from_a_stock_checkpoint_are_initialised(
    stock_folder: Path, kind: str, reads_text: bool
) -> None:
    model = tiny.safe_llava(
        stock_folder, projector=kind, reads_text=reads_text, projector_width=64, lm_tokens=32, head_tokens=32
    )
    checked: set[str] = set()
    for path, module in model.named_modules():
        if not path.startswith(PREFIX):
            continue
        for name, weight in module.named_parameters(recurse=False):
            _assert_initialised(f"{path}.{name}", module, name, weight.detach())
            checked.add(f"{path}.{name}")
    assert checked == {name for name, _ in model.named_parameters() if name.startswith(PREFIX)}
    buffers = [name for name, _ in model.named_buffers() if name.startswith(PREFIX)]
    assert not buffers, f"nothing here tests that these buffers are filled on load: {buffers}"


def _assert_initialised(path: str, module: nn.Module, name: str, weight: Tensor) -> None:
    assert weight.isfinite().all(), f"{path} holds uninitialised memory"
    if isinstance(module, TokenBank):
        _assert_normal(path, weight, STD)
    elif isinstance(module, nn.LayerNorm):
        assert (weight == (1.0 if name == "weight" else 0.0)).all(), f"{path}: a norm starts as ones and zeros"
    elif "bias" in name:
        assert (weight == 0).all(), f"{path}: a bias starts at zero"
    elif name == "in_proj_weight":
        bound = (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max() <= bound, f"{path} is not Xavier-uniform"
        assert abs(weight.std() - bound / 3**0.5) < 0.05 * bound, f"{path} is not Xavier-uniform"
    else:
        _assert_normal(path, weight, tiny.WEIGHT_STD)


def _assert_normal(path: str, weight: Tensor, std: float) -> None:
    five_sigma = 5 * std / weight.numel() ** 0.5
    assert abs(weight.mean()) < five_sigma, f"{path}: mean {weight.mean():.4f}, not 0"
    if weight.numel() > 1:
        assert abs(weight.std() - std) < five_sigma, f"{path}: deviation {weight.std():.4f}, not {std}"


def test_every_weight_of_ours_has_the_prefix(stock: LlavaForConditionalGeneration) -> None:
    model = tiny.safe_llava(stock)
    theirs = dict(stock.named_parameters())
    for name, weight in model.named_parameters():
        assert is_safety_name(name) == (name not in theirs)
        assert is_safety_name(f"base_model.model.{name}") == (name not in theirs), "PEFT's prefix hides the name"
        assert name not in theirs or weight.shape == theirs[name].shape


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_k_tokens_land_in_k_slots(stock: LlavaForConditionalGeneration) -> None:
    model = tiny.safe_llava(stock, lm_tokens=3)
    assert model.slots == tiny.PATCHES + 3
    seen: list[Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    inputs = tiny.batch([2, 1], model.slots)
    with torch.no_grad():
        model(**inputs)
        image_tokens = torch.stack(stock.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output)
    (embeddings,) = seen
    in_slots = embeddings[inputs["input_ids"] == tiny.IMAGE].unflatten(0, (3, model.slots))
    for image in range(3):
        assert torch.equal(in_slots[image, :3], model.safety_lm_tokens.latent), "the first K slots hold the bank"
        assert torch.equal(in_slots[image, 3:], image_tokens[image]), "the rest holds the stock projector's output"
    words = inputs["input_ids"] != tiny.IMAGE
    assert torch.equal(embeddings[words], stock.get_input_embeddings()(inputs["input_ids"])[words])


def test_every_lm_token_reaches_the_answer() -> None:
    model = tiny.safe_llava(lm_tokens=3)
    inputs = tiny.batch([1], model.slots)
    logits = _logits(model, inputs)
    for index in range(3):
        with torch.no_grad():
            model.safety_lm_tokens.latent[index] += 1
        changed = _logits(model, inputs)
        assert not torch.allclose(changed[:, -1], logits[:, -1]), f"LM token {index} changes nothing"
        logits = changed


def test_lm_tokens_do_not_reach_the_head_nor_the_head_the_lm() -> None:
    model = tiny.safe_llava()
    inputs = tiny.batch([1], model.slots)
    mask = tiny.words_of(inputs["input_ids"])
    with torch.no_grad():
        before = model(**inputs, safety_word_mask=mask)
        model.safety_lm_tokens.latent += 1
        other_bank = model(**inputs, safety_word_mask=mask)
        model.safety_head.tokens.latent += 1
        tiny.shake(model.safety_projector)
        other_head = model(**inputs, safety_word_mask=mask)
    assert torch.equal(other_bank.level_logits, before.level_logits), "the LM's bank reaches the head"
    assert not torch.equal(other_bank.logits, before.logits)
    assert torch.equal(other_head.logits, other_bank.logits), "the head's weights reach the LM"
    assert not torch.equal(other_head.level_logits, other_bank.level_logits)


def test_text_only_batch_has_no_tokens_and_stock_logits(stock: LlavaForConditionalGeneration) -> None:
    inputs = tiny.batch([0, 0], 0)
    assert torch.equal(_logits(tiny.safe_llava(stock), inputs), _logits(stock, inputs))


def test_copied_model_uses_its_own_tokens() -> None:
    model = tiny.safe_llava()
    twin = copy.deepcopy(model)
    inputs = tiny.batch([1], model.slots)
    before = _logits(model, inputs)
    assert torch.equal(_logits(twin, inputs), before)
    with torch.no_grad():
        twin.safety_lm_tokens.latent += 1
    changed = _logits(twin, inputs)
    assert torch.equal(_logits(model, inputs), before), "the copy's tokens speak in the original"
    assert not torch.equal(changed, before), "the copy still uses the original's tokens"
    with torch.no_grad():
        model.safety_lm_tokens.latent -= 1
    assert torch.equal(_logits(twin, inputs), changed), "the original's tokens speak in the copy"
    assert not torch.equal(_logits(model, inputs), before)


# --- passes and batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lm_tokens", [0, 3])
def test_generate_with_cache_equals_generate_without(lm_tokens: int) -> None:
    model = tiny.safe_llava(lm_tokens=lm_tokens)
    inputs = tiny.batch([1, 2], model.slots)
    length = {"max_new_tokens": 8, "min_new_tokens": 8}
    answers = [model.generate(**inputs, **length, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert answers[0].shape[1] == inputs["input_ids"].shape[1] + 8
    assert torch.equal(*answers), "image or safety tokens are lost, or put in twice, after the first step"


def test_generate_is_greedy_forward_row_by_row() -> None:
    model = tiny.safe_llava()
    inputs = tiny.batch([1, 2], model.slots)
    answer = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:]
    pixels = tiny.pixels(3).split([1, 2])
    for index, images in enumerate([1, 2]):
        ids = tiny.row(images, model.slots, words=5 + index, seed=index)
        for token in answer[index].tolist():
            logits = _logits(model, {**tiny.pad([ids]), "pixel_values": pixels[index]})[0, -1]
            logits[tiny.EOS] = -torch.inf
            assert token == logits.argmax()
            ids = [*ids, token]


def test_tower_runs_once_per_forward_and_once_per_generate() -> None:
    model = tiny.safe_llava()
    inputs = tiny.batch([1, 2], model.slots)
    with torch.no_grad(), _tower_calls(model) as calls:
        model(**inputs)
        assert calls == [3]
        model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
        assert calls == [3, 3], "the verdict looks again"
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert calls == [3, 3, 3], "generate looks more than once"
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, num_beams=2, do_sample=False)
        assert sum(calls[3:]) in (3, 6), "beams may repeat the images, not the looking"
        assert len(calls) == 4


def test_one_look_serves_verdict_and_answer() -> None:
    from llava_patch import vision

    model = tiny.safe_llava()
    inputs = tiny.batch([1, 2], model.slots)
    pixels = inputs.pop("pixel_values")
    mask = tiny.words_of(inputs["input_ids"])
    with torch.no_grad(), _tower_calls(model) as calls:
        features = model.encode_images(pixels)
        verdict = model.judge(features.patches, model.images_per_row(inputs["input_ids"]), inputs["input_ids"], mask)
        tokens = vision.as_encoder_outputs(model.project(features.patches).unbind())
        answer = model.generate(**inputs, mm_encoder_outputs=tokens, max_new_tokens=4, do_sample=False)
        assert calls == [3]
        whole = model(**inputs, pixel_values=pixels, safety_word_mask=mask)
        plain = model.generate(**inputs, pixel_values=pixels, max_new_tokens=4, do_sample=False)
    assert torch.equal(verdict.level, whole.level_logits)
    assert torch.equal(verdict.category, whole.category_logits)
    assert torch.equal(answer, plain)


@pytest.mark.parametrize("reads_text", [False, True])
def test_mixed_batch_equals_its_rows_one_by_one(reads_text: bool) -> None:
    model = tiny.safe_llava(reads_text=reads_text)
    images = [1, 0, 2]
    inputs = tiny.batch(images, model.slots)
    with torch.no_grad():
        together = model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    pixels = tiny.pixels(sum(images)).split(images)
    for index, count in enumerate(images):
        alone = tiny.pad([tiny.row(count, model.slots, words=5 + index, seed=index)])
        if count:
            alone["pixel_values"] = pixels[index]
        with torch.no_grad():
            single = model(**alone, safety_word_mask=tiny.words_of(alone["input_ids"]))
        torch.testing.assert_close(together.logits[index, -1], single.logits[0, -1], rtol=1e-4, atol=1e-4)
        if count:
            torch.testing.assert_close(together.level_logits[index], single.level_logits[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.category_logits[index], single.category_logits[0], rtol=1e-4, atol=1e-4)


def test_left_and_right_padding_give_the_same_last_logits() -> None:
    model = tiny.safe_llava()
    left, right = (tiny.batch([1, 2], model.slots, side, extra=4) for side in ("left", "right"))
    last_left = _logits(model, left)[:, -1]
    last_word = right["attention_mask"].sum(1) - 1
    last_right = _logits(model, right)[torch.arange(2), last_word]
    torch.testing.assert_close(last_left, last_right, rtol=1e-4, atol=1e-4)


def test_slots_that_do_not_fit_are_an_error_with_the_numbers() -> None:
    model = tiny.safe_llava(lm_tokens=3)
    inputs = tiny.batch([1], tiny.PATCHES)  # a prompt of the stock processor: no room for the safety tokens
    with pytest.raises(ValueError, match=r"\[16\].*19 per image"):
        model.images_per_row(inputs["input_ids"])
    with pytest.raises(ValueError, match="16"), torch.no_grad():
        model(**inputs)
    with pytest.raises(ValueError, match="16"), torch.no_grad():
        model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))


@pytest.mark.parametrize("skip_lm", [False, True])
@pytest.mark.parametrize("pixels", [2, 4])
def test_images_and_slots_that_differ_in_number_are_an_error(pixels: int, skip_lm: bool) -> None:
    # too few or too many images for the slots: without a check, verdicts slide to other rows
    model = tiny.safe_llava()
    inputs = {**tiny.batch([1, 2], model.slots), "pixel_values": tiny.pixels(pixels)}
    mask = tiny.words_of(inputs["input_ids"])
    with pytest.raises(ValueError), torch.no_grad():
        model(**inputs, safety_word_mask=mask, skip_lm=skip_lm)


def test_images_per_row_counts_whole_images() -> None:
    model = tiny.safe_llava()
    assert model.images_per_row(tiny.batch([2, 0, 1], model.slots)["input_ids"]) == [2, 0, 1]


@pytest.mark.parametrize("reads_text", [False, True])
def test_forward_gives_the_heads_logits_and_changes_nothing_else(reads_text: bool) -> None:
    model = tiny.safe_llava(reads_text=reads_text)
    tiny.shake(model.safety_head)
    inputs = tiny.batch([1, 0, 2], model.slots)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE, -100)
    labels[:, :-2] = -100
    with torch.no_grad():
        plain, taught = model(**inputs), model(**inputs, labels=labels)
        words = (inputs["input_ids"] != tiny.IMAGE) & inputs["attention_mask"].bool()
        asked = model(**inputs, safety_word_mask=words)
        answers_left_out = words & (labels == -100)
        trained = model(**inputs, labels=labels, safety_word_mask=answers_left_out)
        model.safety_head = None
        without, loss = model(**inputs), model(**inputs, labels=labels).loss
    assert torch.equal(plain.level_logits, asked.level_logits) and torch.equal(
        plain.category_logits, asked.category_logits
    )
    assert torch.equal(taught.level_logits, trained.level_logits), "a head that reads text has read the answer"
    assert torch.equal(plain.logits, without.logits) and torch.equal(taught.loss, loss)
    assert without.level_logits is None


def test_generate_does_not_judge_at_every_token() -> None:
    model = tiny.safe_llava()
    calls: list[int] = []
    model.safety_head.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**tiny.batch([1, 2], model.slots), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert len(calls) <= 1, f"the head ran {len(calls)} times for four tokens"


def test_without_an_image_or_a_head_there_are_no_logits() -> None:
    model = tiny.safe_llava()
    assert model(**tiny.batch([0], model.slots)).level_logits is None
    bare = tiny.safe_llava(**tiny.BARE)
    assert bare(**tiny.batch([1], bare.slots)).level_logits is None


def test_skip_lm_gives_the_same_verdict_without_running_the_llm() -> None:
    model = tiny.safe_llava(reads_text=True)
    inputs = tiny.batch([1, 0, 2], model.slots)
    mask = tiny.words_of(inputs["input_ids"])
    calls: list[int] = []
    with torch.no_grad():
        whole = model(**inputs, safety_word_mask=mask)
        model.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
        model.model.multi_modal_projector.register_forward_pre_hook(lambda *_: calls.append(1))
        head_only = model(**inputs, safety_word_mask=mask, skip_lm=True)
    assert not calls, "head-only training runs the LLM or its projector"
    assert head_only.logits is None
    assert torch.equal(head_only.level_logits, whole.level_logits)
    assert torch.equal(head_only.category_logits, whole.category_logits)


def test_labels_give_the_stock_loss(stock: LlavaForConditionalGeneration) -> None:
    inputs = tiny.batch([1, 2], tiny.PATCHES)
    labels = torch.where(tiny.words_of(inputs["input_ids"]), inputs["input_ids"], -100)
    model = tiny.safe_llava(stock, lm_tokens=0)
    assert torch.equal(model(**inputs, labels=labels).loss, stock(**inputs, labels=labels).loss)


def test_pixels_beside_encoder_outputs_are_refused() -> None:
    from llava_patch import vision

    model = tiny.safe_llava()
    inputs = tiny.batch([1], model.slots)
    other = model.project(model.encode_images(tiny.pixels(1, seed=5)).patches)
    with pytest.raises(ValueError), torch.no_grad():  # as the stock class does; else one of them is dropped, quietly
        model(**inputs, mm_encoder_outputs=vision.as_encoder_outputs(other.unbind()))


def test_bfloat16_model_answers_and_judges(tmp_path: Path) -> None:
    tiny.safe_llava(reads_text=True).save_pretrained(tmp_path)
    model = SafeLlava.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    inputs = tiny.batch([1, 0, 2], model.slots)
    with torch.no_grad():
        output = model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    assert output.logits.isfinite().all() and output.level_logits.isfinite().all()


def test_float32_safety_modules_work_on_a_bfloat16_base() -> None:
    model = tiny.safe_llava(reads_text=True).to(torch.bfloat16)
    for name, module in model.named_children():
        if name.startswith(PREFIX):
            module.float()
    inputs = tiny.batch([1, 2], model.slots)
    output = model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    assert output.logits.dtype == torch.bfloat16
    assert output.level_logits.dtype == torch.float32, "what trains is float32"
    (output.level_logits.sum() + output.logits.float().sum()).backward()
    assert model.safety_lm_tokens.latent.grad.dtype == torch.float32


def test_any_width_works() -> None:
    for width in (32, 96):
        model = tiny.safe_llava(tiny.stock_llava(width=width))
        assert isinstance(model.safety_head, SafetyHead)
        inputs = tiny.batch([1], model.slots)
        output = model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
        assert output.level_logits.shape == (1, 4)
        assert model.safety_lm_tokens.latent.shape == (3, width)


def test_generate_can_read_what_forward_takes() -> None:
    names = list(inspect.signature(tiny.safe_llava().forward).parameters)
    assert names[:2] == ["input_ids", "pixel_values"] and "mm_encoder_outputs" in names


@pytest.mark.parametrize("images", [0, 1])
def test_every_output_has_llavas_fields_and_ours(images: int) -> None:
    model = tiny.safe_llava().eval()
    with torch.no_grad():
        output = model(**tiny.batch([images], model.slots))
    assert isinstance(output, SafeLlavaOutput)
    assert (output.level_logits is not None) == ("category_logits" in output) == bool(images)
    assert type(output)(**output).logits is output.logits, (
        "data-parallel training builds an output anew from its fields"
    )
