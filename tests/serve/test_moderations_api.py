"""`/v1/moderations` with OpenAI's own client: a verdict for each string, one for words and images together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from safevlm.serve.moderation import STANDARD
from safevlm.taxonomy import DEFAULT
from tests.engine import engines
from tests.serve.serving import Served, image_part, serving
from tests.serve.test_broken_guard import Moody

RISK = ("must_refuse", "illegal")
OWN = [name for name in DEFAULT.category_names if name != "clean"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engines.engine("safety-head", says=RISK), waiting=4) as running:
        yield running


def results(served: Served, given: Any, **options: Any) -> list[dict[str, Any]]:
    answer = served.client().moderations.create(input=given, **options)
    return [result.to_dict() for result in answer.results]


def test_a_flagged_image_names_our_category_and_has_all_standard_ones(served: Served) -> None:
    (result,) = results(served, [image_part(engines.image(1)), {"type": "text", "text": "What is it?"}])
    assert result["flagged"] and result["looked"] and result["level"] == "must_refuse"
    for table in ("categories", "category_scores", "category_applied_input_types"):
        assert set(result[table]) == {*STANDARD, *OWN}
    assert [name for name, value in result["categories"].items() if value] == ["illegal"]
    assert result["category_scores"]["illegal"] > 0.9
    assert result["category_applied_input_types"]["illegal"] == ["image"]
    assert all(result["category_applied_input_types"][name] == [] for name in STANDARD)


def test_typed_code_never_meets_none(served: Served) -> None:
    answer = served.client().moderations.create(input=[image_part(engines.image(1))], model="omni-moderation-latest")
    (result,) = answer.results
    for field in type(result.categories).model_fields:
        assert getattr(result.categories, field) is False
        assert getattr(result.category_scores, field) == 0.0
        assert getattr(result.category_applied_input_types, field) == []


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("a", 1),
        (["a"], 1),
        (["a", "b", "c"], 3),
        ([str(number) for number in range(40)], 40),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], 1),
        ([image_part(engines.image(1)), image_part(engines.image(2))], 1),
    ],
    ids=["string", "one string", "strings", "more strings than may wait", "texts", "images"],
)
def test_strings_get_a_result_each_and_parts_one_together(served: Served, given: Any, count: int) -> None:
    assert len(results(served, given)) == count


def test_what_no_detector_looked_at_says_so(served: Served) -> None:
    (result,) = results(served, "What is it?")  # the safety head reads images
    assert not result["looked"] and not result["flagged"] and result["level"] is None
    assert result["category_applied_input_types"]["illegal"] == []


@pytest.mark.parametrize("mood", ["raises", "nan"])
def test_a_broken_detector_is_an_error_and_never_unflagged(mood: str) -> None:
    defense = Moody()
    with serving(engines.engine("none").behind(defense)) as served:
        assert results(served, ["a", "b"])[1]["looked"]
        defense.mood = mood
        with pytest.raises(openai.InternalServerError) as caught:
            results(served, ["a", "b"])
        assert caught.value.code == "detector_failed" and "secret" not in str(caught.value)
        assert httpx2.get(f"{served.address}/healthz").status_code == 503
        defense.mood = "well"
        assert results(served, "a") and httpx2.get(f"{served.address}/healthz").status_code == 200


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": ([], "input"),
    "an empty text": ("", "input"),
    "an empty text among others": (["a", ""], "input"),
    "a number": (5, "input"),
    "a number among others": ([5], "input[0]"),
    "strings and parts": (["a", {"type": "text", "text": "b"}], "input"),
    "lists": ([["a"]], "input[0]"),
    "an address": ([{"type": "image_url", "image_url": {"url": "https://x.y/z.png"}}], "input[0].image_url.url"),
    "a broken image": ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "input[0]"),
    "audio": ([{"type": "input_audio", "input_audio": {}}], "input[0]"),
    "too many": (["a"] * 300, "input"),
    "a table": ({"type": "text", "text": "a"}, "input"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_looked_at_is_an_error_that_names_the_field(served: Served, name: str) -> None:
    given, param = WRONG[name]
    with pytest.raises(openai.BadRequestError) as caught:
        results(served, given)
    assert (caught.value.param or "").startswith(param)
    assert "messages" not in caught.value.message
