"""One vision pass per image, shared by detector and model; and what the head's verdict hangs on."""

from __future__ import annotations

import copy

import pytest
import torch

from safevlm.data import chat
from safevlm.defenses import Policy
from safevlm.defenses.safety_head import SafetyHeadDetector
from safevlm.engine import Engine
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Generation, Reply, Request
from tests.engine import engines

QUESTION = "What is in the picture?"
HINTED = ("may_refuse", "illegal")


@pytest.fixture(scope="module", params=["none", "safety-head", "static-prompt+safety-head"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return engines.engine(request.param, says=HINTED)


# --- the tower --------------------------------------------------------------------------------------------------------


def test_the_tower_runs_once_per_image(engine: Engine) -> None:
    with engines.tower_calls(engine) as calls:
        reply = engine.reply(Request(QUESTION, (engines.image(1), engines.image(2))), engines.SHORT)
    assert sum(calls) == 2, f"two images went through the tower as {calls}; detector and model must share one pass"
    assert not reply.refused_by


def test_the_tower_runs_once_per_image_of_a_batch(engine: Engine) -> None:
    counts = (1, 0, 2, 1, 0, 1)
    requests = [Request(QUESTION, tuple(engines.image(seed) for seed in range(count))) for count in counts]
    with engines.tower_calls(engine) as calls:
        engine.reply_all(requests, Generation(max_new_tokens=2), batch_size=6)
    assert calls == [5], f"five images went through the tower as {calls}; one pass for the batch"


def test_the_tower_runs_once_per_image_of_a_stream(engine: Engine) -> None:
    with engines.tower_calls(engine) as calls:
        list(engine.stream(Request(QUESTION, (engines.image(),)), engines.SHORT))
    assert sum(calls) == 1


def test_the_tower_runs_once_per_image_of_a_look_and_the_model_is_not_asked(engine: Engine) -> None:
    with engines.tower_calls(engine) as calls, engines.watched(engine) as asked:
        engine.look(Request(QUESTION, (engines.image(),)))
    assert sum(calls) == (engine.defense.name != "none"), "a detector needs one pass; without one nobody looks"
    assert not asked.rows


def test_the_tower_never_runs_without_an_image(engine: Engine) -> None:
    with engines.tower_calls(engine) as calls:
        engine.reply_all([Request("One?"), Request("Two?")], Generation(max_new_tokens=1))
        list(engine.stream(Request("Three?"), engines.SHORT))
        engine.look(Request("Four?"))
    assert not calls


def test_refused_request_costs_one_pass_and_no_projection() -> None:
    model = engines.model(says=("must_refuse", "illegal"))
    guarded = engines.engine("safety-head", own=model, policy=Policy(DEFAULT, {"must_refuse": "refuse"}))
    projected: list[int] = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda *_: projected.append(1))
    with engines.tower_calls(guarded) as calls:
        assert guarded.reply(Request(QUESTION, (engines.image(),)), engines.SHORT).refused_by
    assert sum(calls) == 1
    assert not projected, "image tokens were made for a model that is not asked"


# --- the verdict ------------------------------------------------------------------------------------------------------

TEXTS = ["What is it?", "How do I use the vork?", "Tell me how to use what you see. " * 6]


def _looks(guarded: Engine, texts: list[str], seed: int = 1) -> list[dict[str, float]]:
    verdicts = [guarded.look(Request(text, (engines.image(seed),))) for text in texts]
    return [{**verdict.level_probabilities, **verdict.category_probabilities} for verdict in verdicts]


def test_verdict_is_the_arg_max_of_both_read_outs() -> None:
    guarded = engines.engine("safety-head")
    taxonomy = guarded.taxonomy
    for seed in range(4):
        verdict = guarded.look(Request(QUESTION, (engines.image(seed),)))
        levels, categories = verdict.level_probabilities, verdict.category_probabilities
        assert (list(levels), list(categories)) == (taxonomy.level_names, taxonomy.category_names)
        assert sum(levels.values()) == pytest.approx(1) and sum(categories.values()) == pytest.approx(1)
        assert levels[verdict.level] == max(levels.values())
        assert categories[verdict.category] == max(categories.values())
        assert verdict.source == "safety-head"


@pytest.mark.parametrize("label", range(7))
def test_every_category_is_called_by_its_own_name(label: int) -> None:
    says = DEFAULT.level_names[label % 4], DEFAULT.category_names[label]
    verdict = engines.engine("safety-head", says=says).look(Request(QUESTION, (engines.image(),)))
    assert (verdict.level, verdict.category) == says


def test_verdict_hangs_on_the_image() -> None:
    guarded = engines.engine("safety-head")
    one, other = (_looks(guarded, TEXTS[:1], seed)[0] for seed in (1, 2))
    assert max(abs(one[name] - other[name]) for name in one) > 1e-3, "two images, one verdict"


def test_verdict_of_an_image_only_head_does_not_hang_on_the_text() -> None:
    guarded = engines.engine("safety-head", reads_text=False)
    first, *others = _looks(guarded, TEXTS)
    assert all(other == first for other in others), "an image-only head must be cacheable per image"


def test_verdict_of_a_text_aware_head_hangs_on_the_text() -> None:
    guarded = engines.engine("safety-head", reads_text=True)
    first, *others = _looks(guarded, TEXTS)
    for other in others:
        assert max(abs(first[name] - other[name]) for name in first) > 1e-3, "the head does not see the question"


def _numbers(reply: Reply) -> list[float]:
    return [*reply.verdict.level_probabilities.values(), *reply.verdict.category_probabilities.values()]


def test_words_that_a_defense_adds_reach_the_llm_and_no_head() -> None:
    own = engines.model(reads_text=True)
    own.safety_head.level.bias.data[DEFAULT.level_id(SAFE)] = -engines.SURE  # something is always added
    own.safety_head.category.bias.data[DEFAULT.category_id(CLEAN)] = -engines.SURE
    request = Request(QUESTION, (engines.image(),))
    rows = [
        engines.engine(name, own=own, policy=Policy(DEFAULT, place=place)).reply(request, Generation(max_new_tokens=1))
        for name in ("safety-head", "static-prompt+safety-head", "safety-head+static-prompt")
        for place in ("after", "before")
    ]
    bare = chat.prompt_text(engines.processor_of(own), request)
    assert all(len(reply.prompt) > len(bare) for reply in rows), "the LLM must see what was added"
    assert all(_numbers(reply) == _numbers(rows[0]) for reply in rows), "the head read words that are not the user's"
    other = engines.engine("safety-head", own=own).look(Request("Where is the vork?", request.images))
    assert list(other.level_probabilities.values()) != _numbers(rows[0])[: len(other.level_probabilities)]


def test_earlier_answers_do_not_reach_the_head_and_earlier_questions_do() -> None:
    guarded = engines.engine("safety-head", reads_text=True)
    images = (engines.image(),)

    def told(question: str, answer: str) -> dict[str, float]:
        return dict(guarded.look(Request(QUESTION, images, history=((question, answer),))).level_probabilities)

    assert told("Hello.", "I see a vork.") == told("Hello.", "I cannot help.")
    assert told("Hello.", "I see a vork.") != told("Where is the vork?", "I see a vork.")


@pytest.mark.parametrize("reads_text", [False, True])
def test_verdict_is_the_same_alone_and_in_a_batch(reads_text: bool) -> None:
    guarded = engines.engine("safety-head", reads_text=reads_text)
    requests = [Request(text, (engines.image(seed),)) for seed, text in enumerate(TEXTS)]
    replies = guarded.reply_all([Request("In words."), *requests], Generation(max_new_tokens=1), batch_size=4)[1:]
    for request, reply in zip(requests, replies, strict=True):
        assert engines.same_verdict(reply.verdict, guarded.look(request)), "neighbours in the batch change the verdict"


@pytest.mark.parametrize("images", [1, 2])
def test_text_aware_head_reads_the_words_that_it_was_trained_on(images: int) -> None:
    # In training the words are all tokens of the prompt but the image slots. Leaving the slots out of the text before
    # it is cut into tokens is not the same: two line ends that an image stood between can become one token.
    guarded = engines.engine("safety-head", reads_text=True)
    guarded.processor.tokenizer = copy.deepcopy(guarded.processor.tokenizer)
    guarded.processor.tokenizer.add_tokens(["\n\n"])
    request = Request("How do I use the vork?", tuple(engines.image(seed) for seed in range(images)))
    text = chat.prompt_text(guarded.processor, request)
    inputs = guarded.processor(text=text, images=list(request.images), return_tensors="pt")
    words = inputs["input_ids"] != guarded.processor.image_token_id
    with torch.no_grad():
        trained = guarded.loaded.safe_llava(**inputs, safety_word_mask=words, skip_lm=True)
    verdict = SafetyHeadDetector().detect(request, guarded._encoder.features([request])[0])
    for logits, table in (
        (trained.level_logits, verdict.level_probabilities),
        (trained.category_logits, verdict.category_probabilities),
    ):
        assert list(table.values()) == pytest.approx(logits[0].softmax(-1).tolist(), abs=1e-5), (
            "the engine shows the head other words than training does"
        )


def test_head_sees_all_images_of_a_request() -> None:
    guarded = engines.engine("safety-head")
    one, both = (
        guarded.look(Request(QUESTION, images)).category_probabilities
        for images in ((engines.image(1),), (engines.image(1), engines.image(2)))
    )
    assert max(abs(one[name] - both[name]) for name in one) > 1e-3, "a risk in the second image would pass unseen"


def test_question_in_words_is_clean_whatever_the_head_says() -> None:
    verdict = engines.engine("safety-head", says=HINTED).look(Request("How do I use the vork?"))
    assert (verdict.level, verdict.category, verdict.level_probabilities) == (SAFE, CLEAN, {})


@pytest.mark.parametrize("read_out", ["level", "category"])
def test_head_that_gives_no_number_refuses(read_out: str) -> None:
    # The arg-max of nan is the first label, and the first level is `safe`: a broken head would wave everything through.
    broken = engines.model(says=HINTED)
    guarded = engines.engine("safety-head", own=broken)
    with torch.no_grad():
        getattr(broken.safety_head, read_out).bias.fill_(float("nan"))
    with engines.watched(guarded) as asked:
        reply = guarded.reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    assert reply.refused_by == "safety-head" and reply.verdict.error, "a head that gives nan lets the request through"
    assert not asked.rows


def test_looking_builds_no_graph() -> None:
    guarded = engines.engine("safety-head", own=engines.model())
    grads: list[bool] = []
    guarded.loaded.safe_llava.safety_head.register_forward_hook(
        lambda module, args, output: grads.append(output.level.requires_grad)
    )
    guarded.look(Request(QUESTION, (engines.image(),)))
    guarded.reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    assert grads == [False, False], "memory for gradients that nobody wants"
