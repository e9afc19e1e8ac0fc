"""What holds for every family, on tiny random models with the family's real processor."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safevlm import defenses
from safevlm.backbones import reading, shared_pass
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.table import BACKBONES
from safevlm.config import SafetyConfig
from safevlm.data import chat, pixels
from safevlm.defenses import VirtualTokens
from safevlm.defenses.base import Defense, Inputs
from safevlm.defenses.policy import read_policy
from safevlm.engine import Engine, setting_of
from safevlm.model import loading
from safevlm.model.safety_modules import is_safety_name
from safevlm.types import Generation, Request, Verdict
from tests.backbones import families
from tests.backbones.features import FEATURES
from tests.backbones.templates import SHAPES
from tests.engine import engines

CPU = torch.device("cpu")
SHORT = Generation(max_new_tokens=6)
GRID = SafetyConfig(projector_width=16, projector_depth=1, projector_tokens=4, head_tokens=2, head_heads=4, lm_tokens=0)
"""With the c_abstractor."""
each_family = families.each()


def each_of_two(name: str, usual: Any, other: Any) -> pytest.MarkDecorator:
    """Every family with the usual value; those of the fast tests with the other one, too."""
    pairs = [(family, usual) for family in families.ANSWERING] + [(family, other) for family in families.QUICK]
    marked = [pytest.param(*pair, marks=families.marks(pair[0])) for pair in pairs]
    return pytest.mark.parametrize(("family", name), marked)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def folder(home: Path, family: str) -> Path:
    place = home / family
    return place if place.is_dir() else families.saved(family, place)


def guarded(home: Path, family: str, defense: str = "safety-head", **safety: Any) -> Engine:
    """The caller's own."""
    loaded = copy.deepcopy(_loaded(folder(home, family), SafetyConfig(**{**vars(families.SAFETY), **safety})))
    policy = read_policy(None, loaded.safe_llava.config.taxonomy, None)
    return Engine(loaded, defenses.build(defense, setting_of(loaded, policy, {}, CPU)), CPU)


@functools.lru_cache(maxsize=4)  # a copy costs a sixth of it
def _loaded(place: Path, safety: SafetyConfig) -> loading.Loaded:
    torch.manual_seed(1)
    return loading.load(place, safety=safety)


def requests() -> list[Request]:
    """Images of several shapes, words alone, an image without much of words, two images, and a history."""
    wide, tall = families.image(1, 40, 20), families.image(3, 20, 44)
    return [
        Request("What is it?", images=(families.image(0),)),
        Request("And this one here?", images=(wide,)),
        Request("Hello!"),
        Request("Which is larger?", images=(families.image(2, 30, 30), tall)),
        Request("And now?", images=(tall,), history=(("Hello!", "Good day."),)),
    ]


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@each_family
def test_a_stock_folder_is_loaded_weight_for_weight_and_answers_as_the_stock_model(home: Path, family: str) -> None:
    stock, processor = families.stock(family)
    engine = Engine.load(folder(home, family), defense="none", device="cpu")
    own = engine.loaded.safe_llava.state_dict()
    assert own.keys() == stock.state_dict().keys()
    assert all(torch.equal(own[name], weight) for name, weight in stock.state_dict().items())
    for request in requests():
        text = chat.prompt_text(engine.processor, request)
        inputs = _made(processor, text, request)
        ids = stock.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        assert engine.reply(request, SHORT).text == processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def _made(processor: Any, text: str, request: Request) -> Any:
    """What the processor itself makes of prompt and images; a first token that the template wrote is not doubled."""
    first = processor.tokenizer.bos_token
    images = [list(request.images)] if request.images else None
    if type(processor).__name__ == "PaliGemmaProcessor":
        return _by_paligemma(processor, text, images)
    written = bool(first) and text.startswith(first)
    return processor(text=[text], images=images, return_tensors="pt", add_special_tokens=not written)


def _by_paligemma(processor: Any, text: str, images: Any) -> Any:
    """It writes first token and line end itself, and reads no words without images."""
    if images is None:
        return processor.tokenizer([text], return_token_type_ids=True, return_tensors="pt")
    bare = text.replace(processor.tokenizer.bos_token, "").removesuffix("\n")
    made = processor(text=[bare], images=images, return_tensors="pt")
    del made["labels"]
    return made


@each_family
def test_logits_without_safety_modules_are_the_stock_ones_to_the_bit(home: Path, family: str) -> None:
    stock, processor = families.stock(family)
    loaded = loading.load(folder(home, family))
    request = requests()[0]
    inputs = _made(processor, chat.prompt_text(processor, request), request)
    with torch.no_grad():
        assert torch.equal(loaded.model(**inputs).logits, stock(**inputs).logits)


@each_family
def test_the_tower_runs_once_for_looking_and_answering(home: Path, family: str) -> None:
    engine = guarded(home, family)
    with counted(engine.model.get_submodule(BACKBONES[family].tower)) as calls:
        engine.reply_all(requests(), SHORT, errors="raise")
    assert len(calls) == 1


@each_of_two("lm_tokens", 3, 0)
def test_a_batch_says_what_each_request_says_alone(home: Path, family: str, lm_tokens: int) -> None:
    engine = guarded(home, family, lm_tokens=lm_tokens)
    together = engine.reply_all(requests(), SHORT, batch_size=8, errors="raise")
    for reply, request in zip(together, requests(), strict=True):
        alone = engine.reply(request, SHORT)
        assert (reply.text, reply.verdict.level, reply.verdict.category, reply.verdict.error) == (
            alone.text,
            alone.verdict.level,
            alone.verdict.category,
            "",
        )
        for name, likely in alone.verdict.level_probabilities.items():
            assert reply.verdict.level_probabilities[name] == pytest.approx(likely, abs=1e-5)


@each_of_two("projector", "resampler", "mlp")
def test_each_images_verdict_hangs_on_it_and_on_no_other(home: Path, family: str, projector: str) -> None:
    engine = guarded(home, family, projector=projector)
    two = requests()[3]
    looked = engine.look(two).images
    for index in range(2):
        images = list(two.images)
        images[index] = families.image(9, 28, 28)
        again = engine.look(Request(two.text, images=tuple(images))).images
        assert again[index].level_probabilities != looked[index].level_probabilities
        assert engines.same_verdict(again[1 - index], looked[1 - index])


@each_family
def test_lm_tokens_reach_the_answer_and_leave_the_verdict_alone(home: Path, family: str) -> None:
    request = requests()[0]
    engine = guarded(home, family)
    before = engine.encoded([request])
    verdict = engine.look(request)
    assert before is not None
    with torch.no_grad():
        logits = engine.model(**before.model_inputs).logits
        engine.model.safety_lm_tokens.latent.add_(1.0)
        changed = engine.encoded([request])
        assert changed is not None
        assert not torch.allclose(engine.model(**changed.model_inputs).logits, logits)
    assert engine.look(request) == verdict
    slots = int((before.input_ids == engine.model.config.image_token_id).sum())
    assert slots == len(before.image_tokens[0]) == 3 + len(engine.model.encode_images(_read(engine)).patches[0])


def _read(engine: Engine) -> ImageInputs:
    backbone = BACKBONES[engine.model.config.model_type.removeprefix("safe_")]
    return ImageInputs(backbone.read(engine.processor, [families.image(0)]))


@each_family
def test_the_prompt_is_the_one_that_the_processor_itself_makes(home: Path, family: str) -> None:
    _, processor = families.stock(family)
    backbone = BACKBONES[family]
    for request in requests():
        text = chat.prompt_text(processor, request)
        made = _made(processor, text, request)["input_ids"][0].tolist()
        places = [image.placeholder for image in backbone.read(processor, list(request.images))]
        assert chat.prompts(processor, [request], [places])[0].ids == made


@each_family
def test_video_and_sound_are_refused(home: Path, family: str) -> None:
    processor = Engine.load(folder(home, family), defense="none", device="cpu").processor
    for medium in ("videos", "audio"):
        with pytest.raises(ValueError, match="video"):
            processor(text=["What happens?"], **{medium: [torch.zeros(2, 3, 16, 16)]})
            pytest.fail(f"{medium} were taken")


@each_family
def test_a_token_of_the_template_in_a_users_words_stays_text(home: Path, family: str) -> None:
    engine = guarded(home, family)
    control = [reading.slot(engine.processor), engine.processor.image_token, SHAPES[family].end, *SHAPES[family].tokens]
    request = Request(" ".join(control), images=(families.image(0),))
    plain = Request("words", images=request.images)
    special = set(engine.processor.tokenizer.all_special_ids)

    def controls(asked: Request) -> list[int]:
        encoded = engine.encoded([asked])
        assert encoded is not None
        return [token for token in encoded.input_ids[0].tolist() if token in special]

    assert controls(request) == controls(plain)


class _WithVirtualTokens(Defense):
    """Learned vectors in front of everything, and behind the first few tokens."""

    name = "virtual"

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        virtual = (VirtualTokens(self.vectors, 0), VirtualTokens(self.vectors[:1], len(inputs.input_ids) - 2))
        return Inputs(inputs.input_ids, inputs.pixel_values, virtual, inputs.image_token_id)


@each_family
def test_virtual_tokens_that_are_words_say_what_the_words_say(home: Path, family: str) -> None:
    bare = Engine.load(folder(home, family), defense="none", device="cpu")
    word = bare.processor.tokenizer("x", add_special_tokens=False)["input_ids"]
    vectors = bare.model.get_input_embeddings()(torch.tensor([*word, *word]))
    with_virtual = bare.behind(_WithVirtualTokens(vectors.detach() * 1.0))
    for request in (requests()[0], requests()[3]):
        encoded, changed = bare.encoded([request]), with_virtual.encoded([request])
        assert encoded is not None and changed is not None
        ids = encoded.input_ids[0].tolist()
        words = torch.tensor([[*word, *word, *ids[:-2], *word, *ids[-2:]]])
        further = encoded.lm_arguments(words, encoded.image_tokens)
        with torch.no_grad():
            said = bare.model(input_ids=words, attention_mask=torch.ones_like(words), **further).logits[0, -1]
            scale = getattr(bare.model.get_input_embeddings(), "embed_scale", None)
            if scale is None:  # else an embedding is scaled behind the table, which a virtual token is not
                assert torch.allclose(bare.model(**changed.model_inputs).logits[0, -1], said, atol=1e-5)
        assert changed.input_ids.shape[1] == words.shape[1]


@each_family
def test_a_lora_reaches_every_linear_layer_of_the_llms_layers_and_nothing_else(family: str) -> None:
    row, (model, _) = BACKBONES[family], families.stock(family)
    modules = dict(model.named_modules())
    linear = {name for name, own in modules.items() if type(own) is torch.nn.Linear and name.startswith(row.lm_layers)}
    assert {name for name in modules if re.fullmatch(row.lora_targets, name)} == linear


@each_family
def test_gradients_flow_from_the_tokens_to_the_pixels(family: str) -> None:
    """What an attack on the pixels stands on."""
    model, processor = families.stock(family)
    backbone = BACKBONES[family]
    image = backbone.read(processor, [families.image(0)])[0]
    image.tensors["pixel_values"].requires_grad_(True)
    shared_pass.encode(backbone, model, ImageInputs([image])).patches[0].sum().backward()
    gradient = image.tensors["pixel_values"].grad
    assert gradient is not None and bool(gradient.abs().sum() > 0)


@families.each([family for family in families.ANSWERING if not BACKBONES[family].is_one_square])
def test_the_c_abstractor_is_refused_where_no_grid_is(home: Path, family: str) -> None:
    with pytest.raises(ValueError, match="resampler"):
        loading.load(folder(home, family), safety=GRID)


@families.each(FEATURES["c_abstractor"])
def test_the_c_abstractor_reads_an_image_in_one_piece_and_refuses_tiles(family: str, tmp_path: Path) -> None:
    families.saved_whole(family, tmp_path / family)
    engine = guarded(tmp_path, family, **vars(GRID))
    together = engine.reply_all(requests(), Generation(max_new_tokens=1), batch_size=8, errors="raise")
    alone = [reply.verdict for reply in together if len(reply.request.images) == 1]
    assert len({verdict.level_probabilities["safe"] for verdict in alone}) == len(alone), (
        "it tells no image from another"
    )
    for reply in together:
        assert engines.same_verdict(reply.verdict, engine.look(reply.request)) and not reply.verdict.error
    whole: Any = pixels.read_singly(engine.processor, [families.image(0)])
    tiles = {name: torch.cat([own, own]) for name, own in whole[0].tensors.items()}
    with pytest.raises(ValueError, match="c_abstractor .* tiles"):
        engine.model.encode_images(ImageInputs([dataclasses.replace(whole[0], tensors=tiles)]))


@each_family
def test_without_the_llm_it_looks_and_does_not_answer(home: Path, family: str) -> None:
    loaded = loading.load(folder(home, family), safety=families.SAFETY, lm=False)
    whole = guarded(home, family)
    loaded.safe_llava.load_state_dict(
        {name: weight for name, weight in whole.model.state_dict().items() if is_safety_name(name)}, strict=False
    )
    policy = read_policy(None, loaded.safe_llava.config.taxonomy, None)
    engine = Engine(loaded, defenses.build("safety-head", setting_of(loaded, policy, {}, CPU)), CPU)
    assert engine.look(requests()[0]) == whole.look(requests()[0])
    with pytest.raises(ValueError, match="LLM"):
        engine.reply(Request("Hello!"), SHORT)


LOOKS_AGAIN = ("safety-head:views", "safety-head:smoothed", "safety-head:consistent", "safety-head:either")


@pytest.mark.slow
@families.few()
def test_a_guard_that_looks_again_says_the_same_alone_and_in_a_batch(home: Path, family: str, tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text("{n: 11, alpha: 0.01}", encoding="utf-8")
    for name in LOOKS_AGAIN:
        engine = guarded(home, family, f"{name}={tmp_path / 'few.yaml'}" if name.endswith("smoothed") else name)
        together = engine.reply_all(requests(), Generation(max_new_tokens=1), batch_size=8, errors="raise")
        for reply, request in zip(together[:4], requests(), strict=False):
            alone = engine.look(request)
            assert not alone.error and alone.looked == bool(request.images), (name, alone.error)
            assert (reply.verdict.level, reply.verdict.category, reply.verdict.view, reply.verdict.radius) == (
                alone.level,
                alone.category,
                alone.view,
                alone.radius,
            )
