"""The processor makes as many slots as the model fills, whatever fields it came with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast

from llava_patch.processor import make_room, slots_per_image
from safevlm.miniature.build import make_processor
from safevlm.miniature.words import build_tokenizer
from tests import tiny

SIZE, PATCH, PATCHES = 64, 16, 16


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    return make_processor(tokenizer)


def _config(strategy: str = "default"):  # noqa: ANN202
    return tiny.stock_config(image_size=SIZE, patch=PATCH, vision_feature_select_strategy=strategy)


def _slots(processor: LlavaProcessor, images: int = 1) -> int:
    """Image slots that the processor really writes."""
    image = Image.new("RGB", (SIZE, SIZE), "red")
    encoded = processor(images=[image] * images, text="USER: " + "<image>\n" * images + "hello ASSISTANT:")
    return sum(token == processor.image_token_id for token in encoded["input_ids"][0])


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("extra", [0, 1, 7])
@pytest.mark.parametrize(("strategy", "patches"), [("default", PATCHES), ("full", PATCHES + 1)])
def test_every_image_gets_its_patches_and_k_slots(
    processor: LlavaProcessor, strategy: str, patches: int, extra: int, images: int
) -> None:
    config = _config(strategy)
    assert slots_per_image(config, extra) == patches + extra
    assert _slots(make_room(processor, config, extra), images) == images * (patches + extra)


def test_making_room_twice_makes_it_once(processor: LlavaProcessor) -> None:
    config = _config()
    once = _slots(make_room(processor, config, 3))
    twice = _slots(make_room(make_room(processor, config, 3), config, 3))
    assert once == twice == PATCHES + 3, "room is added on top of room"
    assert _slots(make_room(processor, config, 0)) == PATCHES, "room cannot be taken back"


def test_processor_without_its_image_fields_gets_them_from_the_config(processor: LlavaProcessor) -> None:
    processor.patch_size = None
    processor.vision_feature_select_strategy = None
    processor.num_additional_image_tokens = 0
    assert _slots(make_room(processor, _config(), 3)) == PATCHES + 3


def test_room_survives_save_and_load(processor: LlavaProcessor, tmp_path: Path) -> None:
    make_room(processor, _config(), 3).save_pretrained(tmp_path)
    assert _slots(LlavaProcessor.from_pretrained(tmp_path)) == PATCHES + 3


def test_auto_processor_reads_a_checkpoint_of_ours(processor: LlavaProcessor, tmp_path: Path) -> None:
    model = tiny.safe_llava(_config())
    model.save_pretrained(tmp_path)
    make_room(processor, model.config, 3).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LlavaProcessor
    assert _slots(loaded) == model.slots


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("extra", [0, 3])
def test_processor_and_model_agree_end_to_end(processor: LlavaProcessor, extra: int, strategy: str) -> None:
    config = _config(strategy)
    config.text_config.vocab_size = len(processor.tokenizer)
    config.image_token_index = processor.image_token_id
    model = tiny.safe_llava(config, lm_tokens=extra, projector="resampler")
    make_room(processor, config, extra)
    images = [Image.new("RGB", (80, 50), colour) for colour in ("red", "blue", "green")]
    prompts = ["USER: <image>\nWhat is in the picture? ASSISTANT:", "USER: <image>\n<image>\nhow? ASSISTANT:", "hello"]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    assert model.images_per_row(inputs["input_ids"]) == [1, 2, 0]
    with torch.no_grad():
        output = model(**inputs, safety_word_mask=inputs["attention_mask"].bool())
        answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert output.logits.isfinite().all()
    assert output.level_logits.shape == (3, 4)
    assert answer.shape[0] == 3


def test_stock_prompt_on_a_model_with_tokens_is_an_error(processor: LlavaProcessor) -> None:
    config = _config()
    config.text_config.vocab_size = len(processor.tokenizer)
    model = tiny.safe_llava(config, lm_tokens=3)
    image = Image.new("RGB", (SIZE, SIZE), "red")
    inputs = processor(images=image, text="<image>\nhello", return_tensors="pt", return_token_type_ids=False)
    with pytest.raises(ValueError, match=str(PATCHES)), torch.no_grad():
        model(**inputs)
