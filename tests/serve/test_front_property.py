"""Whatever a body looks like: every image that reaches the upstream is one that the guard looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.engine import engines
from tests.serve.serving import NAME, Served, listening, uri
from tests.serve.upstreams import Recorder, Watching, fronting

pytest.importorskip("hypothesis", reason="generated bodies need hypothesis (extra dev)")
from hypothesis import HealthCheck, given, settings  # noqa: E402 - after the skip
from hypothesis import strategies as st  # noqa: E402

EXAMPLES = 40
"""Fast; the slow test below takes many times as many."""
MANY = 400
IMAGES = [
    uri(Image.new(mode, size, colour), format)
    for mode, size, colour, format in (
        ("RGB", (8, 8), "red", "PNG"),
        ("RGBA", (60, 50), (0, 200, 0, 90), "PNG"),
        ("L", (90, 20), 40, "JPEG"),
        ("P", (7, 70), 3, "GIF"),
    )
]
WORDS = st.sampled_from(["", "What is it?", "<image>", "data:image/png;base64,AAAA", "</s>", IMAGES[0]])
URLS = st.sampled_from(
    [*IMAGES, "https://example.org/a.png", "file:///a.png", "data:,a", "", "DATA:image/png;base64,AA"]
)
PLACES = st.sampled_from(
    ["image_url", "image", "input_image", "image_embeds", "image_pil", "video_url", "audio_url", "input_audio", "file"]
)
HELD = st.one_of(
    URLS,
    URLS.map(lambda url: {"url": url}),
    URLS.map(lambda url: {"url": url, "detail": "low"}),
    st.none(),
    st.just([]),
)
EXTRAS = st.dictionaries(st.sampled_from(["uuid", "image_url", "text", "cache_control", "detail"]), HELD, max_size=2)
GOOD = st.one_of(
    st.sampled_from(IMAGES).map(lambda url: {"type": "image_url", "image_url": {"url": url}}),
    WORDS.map(lambda text: {"type": "text", "text": text}),
)
ODD = st.one_of(
    st.builds(lambda kind, key, held, more: {"type": kind, key: held, **more}, PLACES, PLACES, HELD, EXTRAS),
    st.builds(lambda key, held: {key: held}, PLACES, HELD),
    st.builds(lambda part, more: {**part, **more}, GOOD, EXTRAS),
    WORDS,
    st.lists(GOOD, max_size=2),
)
CONTENT = st.one_of(
    WORDS, st.lists(GOOD, min_size=1, max_size=4), st.lists(st.one_of(GOOD, ODD), max_size=4), st.none()
)
MESSAGE = st.builds(
    lambda role, content, more: {"role": role, "content": content, **more},
    st.sampled_from(["user", "assistant", "system", "tool", "developer"]),
    CONTENT,
    st.one_of(st.just({}), EXTRAS),
)
TALK = st.lists(st.lists(GOOD, min_size=1, max_size=3), min_size=1, max_size=3).map(
    lambda turns: [
        message
        for parts in turns
        for message in ({"role": "user", "content": parts}, {"role": "assistant", "content": "A cup."})
    ][:-1]
)
FIELDS = st.dictionaries(
    st.sampled_from(["temperature", "top_k", "stream", "mm_processor_kwargs", "prompt_embeds", "images", "tools"]),
    st.one_of(st.integers(0, 2), st.booleans(), HELD),
    max_size=2,
)
BODY = st.builds(
    lambda messages, fields: {"model": NAME, "messages": messages, **fields},
    st.one_of(TALK, TALK, st.lists(MESSAGE, max_size=4)),
    st.one_of(st.just({}), FIELDS),
)
KEYS = {"role", "content", "name", "tool_call_id", "tool_calls"}
PARTS = ({"type", "text"}, {"type", "image_url"})


@dataclass(frozen=True)
class Line:
    """A client, a guard and an upstream in a row."""

    client: httpx2.Client
    served: Served
    watching: Watching
    recorder: Recorder

    def send(self, body: Any) -> None:
        self.watching.reset()
        self.recorder.reset()
        answer = self.client.post(f"{self.served.address}/v1/chat/completions", json=body)
        assert answer.status_code in (200, 400)
        assert len(self.recorder.bodies) == (answer.status_code == 200)
        given = iter(part for message in body["messages"] for part in _parts(message) if _is_image(part))
        for message in (message for sent in self.recorder.bodies for message in sent["messages"]):
            assert message.keys() <= KEYS
            for part in _parts(message):
                assert part.keys() in PARTS and isinstance(part.get("text", ""), str)
                if _is_image(part):
                    assert part["image_url"].keys() == {"url"} and next(given, None) is not None
        assert self.recorder.images() == (self.watching.seen if self.recorder.bodies else [])
        assert not self.recorder.bodies or next(given, None) is None
        for sent in self.recorder.bodies:
            assert sent.keys() <= {"model", "messages", "temperature", "top_k", "stream", "tools"}
            assert not sent.get("tools")


def _parts(message: dict[str, Any]) -> list[Any]:
    return message["content"] if isinstance(message.get("content"), list) else []


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    recorder, watching = Recorder(), Watching()
    with (
        listening(recorder) as there,
        fronting(engines.engine("none").behind(watching), there) as served,
        httpx2.Client(timeout=60.0, trust_env=False) as client,
    ):
        yield Line(client, served, watching, recorder)


def never_unseen(examples: int) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks, derandomize=True, database=None)


@never_unseen(EXAMPLES)
@given(body=BODY)
def test_no_image_reaches_the_upstream_unseen(line: Line, body: dict[str, Any]) -> None:
    line.send(body)


@pytest.mark.slow
@never_unseen(MANY)
@given(body=BODY)
def test_no_image_reaches_the_upstream_unseen_in_many_bodies(line: Line, body: dict[str, Any]) -> None:
    line.send(body)
