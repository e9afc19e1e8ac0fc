"""The head sees what it says it sees: an image-only head no word, a text-aware head every word, neither the padding."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from safevlm.model.head import HeadLogits, OneQueryAttention, SafetyHead
from safevlm.model.safe_llava import SafeLlava
from tests import tiny

WIDTH, LEVELS, CATEGORIES = 32, 4, 7
TOLERANCE = 1e-5
"""Float noise of another batch shape; a change that means something is larger by orders."""


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _head(reads_text: bool, tokens: int = 2, heads: int = 4) -> SafetyHead:
    torch.manual_seed(0)
    return tiny.shake(SafetyHead(WIDTH, heads, tokens, LEVELS, CATEGORIES, reads_text)).eval()


def _flat(logits: HeadLogits) -> Tensor:
    """(b, levels + categories)."""
    return torch.cat([logits.level, logits.category], 1)


def _change(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@functools.cache
def _model(reads_text: bool) -> SafeLlava:
    """Shared: no test may change it."""
    return tiny.shake(tiny.safe_llava(reads_text=reads_text), std=0.05)


def _verdict(model: SafeLlava, inputs: dict[str, Tensor]) -> Tensor:
    """Through the model's forward, as training calls it."""
    with torch.no_grad():
        output = model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    return torch.cat([output.level_logits, output.category_logits], 1)


def test_read_outs_have_one_logit_per_level_and_category() -> None:
    for reads_text in (False, True):
        logits = _head(reads_text)(_noise(3, 6, WIDTH), None, _noise(3, 5, WIDTH), torch.ones(3, 5, dtype=torch.bool))
        assert logits.level.shape == (3, LEVELS)
        assert logits.category.shape == (3, CATEGORIES)


def test_attention_of_one_query_is_torchs_own_attention_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    ours, own = OneQueryAttention(WIDTH, 4, batch_first=True), nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    own.load_state_dict(tiny.shake(ours).state_dict())
    query, features, there = _noise(3, 1, WIDTH), _noise(3, 6, WIDTH, seed=1), torch.ones(3, 6, dtype=torch.bool)
    there[1, 4:], there[2] = False, False
    features.requires_grad_()
    found = ours(query, features, there)
    wanted = own(query, features, features, key_padding_mask=~there, need_weights=False)[0]
    assert found.shape == wanted.shape and _change(found, wanted) < TOLERANCE
    gradients = [
        torch.autograd.grad((out * _noise(3, 1, WIDTH, seed=2)).sum(), [features, *module.parameters()])
        for out, module in ((found, ours), (wanted, own))
    ]
    assert all(_change(*pair) < 10 * TOLERANCE for pair in zip(*gradients, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert _change(ours(query, features, there).float(), wanted) < 0.05


def test_image_only_head_provably_ignores_text() -> None:
    model = _model(reads_text=False)
    inputs = tiny.batch([1, 2], model.slots)
    verdict = _verdict(model, inputs)
    ids = inputs["input_ids"]
    for seed in range(3):
        noise = torch.Generator().manual_seed(seed)
        others = torch.randint(tiny.FIRST_WORD, tiny.VOCABULARY, ids.shape, generator=noise)
        changed = {**inputs, "input_ids": torch.where(tiny.words_of(ids), others, ids)}
        assert torch.equal(_verdict(model, changed), verdict), "an image-only head's verdict changed with the words"


def test_image_only_head_ignores_words_that_are_given() -> None:
    head, features, mask = _head(reads_text=False), _noise(2, 6, WIDTH), torch.ones(2, 5, dtype=torch.bool)
    with_words = _flat(head(features, None, _noise(2, 5, WIDTH, seed=1), mask))
    assert torch.equal(with_words, _flat(head(features))), "words handed to an image-only head reach its verdict"


@pytest.mark.parametrize("reads_text", [False, True])
def test_a_mask_that_hides_nothing_is_no_mask(reads_text: bool) -> None:
    head, features = _head(reads_text), _noise(2, 6, WIDTH)
    words = (_noise(2, 5, WIDTH, seed=1), torch.ones(2, 5, dtype=torch.bool))
    seen = torch.ones(2, 6, dtype=torch.bool)
    assert _change(_flat(head(features, seen, *words)), _flat(head(features, None, *words))) < TOLERANCE


def test_image_only_head_needs_no_text_at_all() -> None:
    model = _model(reads_text=False)
    inputs = tiny.batch([1, 2], model.slots)
    with torch.no_grad():
        patches = model.encode_images(inputs["pixel_values"]).patches
        cached = _flat(model.judge(patches, [1, 2]))
    assert _change(cached, _verdict(model, inputs)) < TOLERANCE


def test_head_sees_every_text_token() -> None:
    model = _model(reads_text=True)
    inputs = tiny.batch([1], model.slots)
    verdict = _verdict(model, inputs)
    blind = []
    for place in tiny.words_of(inputs["input_ids"])[0].nonzero().flatten().tolist():
        changed = inputs["input_ids"].clone()
        changed[0, place] = tiny.FIRST_WORD + (changed[0, place] - tiny.FIRST_WORD + 1) % 200
        if _change(_verdict(model, {**inputs, "input_ids": changed}), verdict) < 100 * TOLERANCE:
            blind.append(place)
    assert not blind, f"words at {blind} change nothing: the head reads a single position, as the released code does"


def test_text_aware_head_never_sees_masked_words() -> None:
    head = _head(reads_text=True)
    features, words = _noise(2, 6, WIDTH), _noise(2, 8, WIDTH, seed=1)
    mask = torch.tensor([[False, True, True, False, True, True, False, False], [True] * 5 + [False] * 3])
    changed = torch.where(mask.unsqueeze(-1), words, _noise(2, 8, WIDTH, seed=2) * 10)
    one, other = (_flat(head(features, None, given, mask)) for given in (words, changed))
    assert torch.equal(one, other), "what the mask leaves out (image slots, template, padding) changed the verdict"


def test_text_aware_head_is_a_bag_of_words() -> None:
    """A limit, stated: words carry no position, so their order is not seen."""
    head = _head(reads_text=True)
    features, words = _noise(1, 6, WIDTH), _noise(1, 5, WIDTH, seed=1)
    mask = torch.ones(1, 5, dtype=torch.bool)
    said, reversed_ = (_flat(head(features, None, given, mask)) for given in (words, words.flip(1)))
    assert _change(said, reversed_) < TOLERANCE


@pytest.mark.parametrize("reads_text", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 1, 9])
def test_verdict_does_not_depend_on_padding_or_company(reads_text: bool, side: str, extra: int) -> None:
    model = _model(reads_text)
    images = [1, 2, 1]
    together = _verdict(model, tiny.batch(images, model.slots, side, extra))
    pixels = tiny.pixels(sum(images)).split(images)
    for index, count in enumerate(images):
        ids = tiny.pad([tiny.row(count, model.slots, words=5 + index, seed=index)])
        alone = _verdict(model, {**ids, "pixel_values": pixels[index]})[0]
        assert _change(together[index], alone) < TOLERANCE, f"row {index} judged alone gets another verdict"


@pytest.mark.parametrize("reads_text", [False, True])
def test_a_row_without_image_gets_a_finite_verdict_and_gradient(reads_text: bool) -> None:
    for head_tokens in (2, 0):
        model = tiny.safe_llava(reads_text=reads_text, head_tokens=head_tokens).requires_grad_(True)
        inputs = tiny.batch([1, 0], model.slots)
        output = model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
        output.level_logits[0].sum().backward()  # the text-only row is unlabelled, as in training
        gradients = [weight.grad for weight in model.safety_head.parameters() if weight.grad is not None]
        assert all(grad.isfinite().all() for grad in gradients), f"NaN gradients with head_tokens={head_tokens}"
        assert output.level_logits.isfinite().all(), f"NaN verdict of a text-only row with head_tokens={head_tokens}"


def test_features_outside_the_mask_do_not_matter_and_those_inside_do() -> None:
    for reads_text in (False, True):
        head = _head(reads_text)
        features, words = _noise(2, 6, WIDTH), _noise(2, 5, WIDTH, seed=1)
        word_mask = torch.ones(2, 5, dtype=torch.bool)
        mask = torch.tensor([[True, True, True, False, False, False], [True] * 6])
        verdict = _flat(head(features, mask, words, word_mask))
        outside, inside = features.clone(), features.clone()
        outside[0, 3:] += 100
        inside[0, 2] += 1
        assert torch.equal(_flat(head(outside, mask, words, word_mask)), verdict), "an excluded image was seen"
        moved = (_flat(head(inside, mask, words, word_mask)) - verdict).abs().max(1).values
        assert moved[0] > 100 * TOLERANCE, "a feature inside the mask changes nothing"
        assert moved[1] == 0, "rows are mixed"


@pytest.mark.parametrize("reads_text", [False, True])
def test_every_head_token_matters(reads_text: bool) -> None:
    head = _head(reads_text, tokens=3)
    inputs = (_noise(1, 6, WIDTH), None, _noise(1, 5, WIDTH, seed=1), torch.ones(1, 5, dtype=torch.bool))
    verdict = _flat(head(*inputs))
    for index in range(3):
        with torch.no_grad():
            head.tokens.latent[index] += 1
        changed = _flat(head(*inputs))
        assert _change(changed, verdict) > 100 * TOLERANCE, f"head token {index} changes nothing"
        verdict = changed


def test_without_head_tokens_there_is_no_bank() -> None:
    head = _head(reads_text=False, tokens=0)
    assert head.tokens is None
    assert _flat(head(_noise(2, 6, WIDTH))).isfinite().all()


def test_heads_that_do_not_divide_the_width_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"head_heads.*5.*32"):
        _head(reads_text=False, heads=5)


def test_text_aware_head_without_text_is_an_error_and_no_guess() -> None:
    with pytest.raises(ValueError, match="reads text"):
        _head(reads_text=True)(_noise(1, 6, WIDTH))
    model = _model(reads_text=True)
    with pytest.raises(ValueError, match="reads text"):
        model.judge(model.encode_images(tiny.pixels(1)).patches, [1])


def test_a_model_without_head_says_so() -> None:
    model = tiny.safe_llava(projector="none")
    with pytest.raises(ValueError, match="no safety head"):
        model.judge(model.encode_images(tiny.pixels(1)).patches, [1])
    with pytest.raises(ValueError, match="no safety projector"):
        model.safety_features(model.encode_images(tiny.pixels(1)).patches)


@pytest.mark.parametrize("reads_text", [False, True])
def test_permuted_patches_change_the_verdict_of_a_c_abstractor_head(reads_text: bool) -> None:
    model = _model(reads_text)
    assert model.config.safety_config.projector == "c_abstractor"
    inputs = tiny.batch([1], model.slots)
    mask = tiny.words_of(inputs["input_ids"])
    with torch.no_grad():
        patches = model.encode_images(inputs["pixel_values"]).patches
        order = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(0))
        one, other = (
            _flat(model.judge(given, [1], inputs["input_ids"], mask)) for given in (patches, patches[:, order])
        )
    assert _change(one, other) > 100 * TOLERANCE, "the head does not look at where things are"


@pytest.mark.parametrize("reads_text", [False, True])
def test_every_weight_of_the_head_learns(reads_text: bool) -> None:
    head = _head(reads_text)
    logits = head(_noise(2, 6, WIDTH), None, _noise(2, 5, WIDTH, seed=1), torch.ones(2, 5, dtype=torch.bool))
    _flat(logits).pow(2).sum().backward()
    dead = [name for name, weight in head.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not dead, f"weights that change nothing: {dead}"
