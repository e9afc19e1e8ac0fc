"""A guard in front of a server that it does not know: what goes on to it, what comes back, and what never does."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from safevlm.defenses import Defense, ImageFeatures, Inputs, Policy, prompts
from safevlm.engine import Engine
from safevlm.serve.front import check_engine, check_trial
from safevlm.serve.upstream import address, only_model
from safevlm.taxonomy import DEFAULT
from safevlm.types import Reply, Request, Verdict
from safevlm.usage import UsageError
from tests.engine import engines
from tests.serve import upstreams
from tests.serve.serving import NAME, Served, asked, image_part, listening, serving, uri
from tests.serve.upstreams import BREAKS_OFF, DONE, EVENTS, HANGS, JSON, STREAM, THERE, Recorder, Watching, fronting

RISK = ("must_refuse", "illegal")
KEY = "upstream-secret"
SECONDS = 1.0
"""That a request may last, where it is to last too long."""


@pytest.fixture(scope="module")
def served(there: str, watching: Watching) -> Iterator[Served]:
    with fronting(engines.engine("none").behind(watching), there, key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(there: str) -> Iterator[Served]:
    with fronting(engines.engine("none").behind(Watching()), there, seconds=SECONDS) as running:
        yield running


@pytest.fixture
def front(served: Served, recorder: Recorder, watching: Watching) -> Served:
    """The guard in front of it, which has seen nothing."""
    watching.reset()
    return served


def post(served: Served, messages: list[dict[str, Any]], **fields: Any) -> httpx2.Response:
    body = {"model": NAME, "messages": messages, **fields}
    return httpx2.post(f"{served.address}/v1/chat/completions", json=body, timeout=30.0, trust_env=False)


def counted(served: Served, name: str, **labels: str) -> float:
    return served.model.metrics.registry.get_sample_value(f"safevlm:{name}", labels) or 0.0


def question(*images: int) -> list[dict[str, Any]]:
    return [asked("What is it?", *map(engines.image, images))]


def test_an_answer_comes_back_byte_by_byte(front: Served) -> None:
    assert post(front, question(1)).content == json.dumps(upstreams.COMPLETION).encode()
    streamed = post(front, question(1), stream=True)
    assert streamed.content == b"".join(STREAM)
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_a_stream_without_done_is_over_when_its_answer_is(front: Served, recorder: Recorder) -> None:
    end = upstreams.chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    recorder.answer = (200, EVENTS, [upstreams.chunk("A"), end])
    assert post(front, question(1), stream=True).content == upstreams.chunk("A") + end
    told = post(front, question(1), stream=True, moderation={"model": "any"}).content
    assert told.startswith(upstreams.chunk("A") + end) and b'"moderation"' in told and b"error" not in told
    recorder.answer = (200, EVENTS, [upstreams.chunk("A"), end, b"data: {"])
    assert b"upstream_broke_off" in post(front, question(1), stream=True).content


def test_our_own_server_answers_behind_the_guard_as_without_it() -> None:
    messages = [asked("What is it?", engines.image(1)), {"role": "assistant", "content": "A cup."}, *question(2, 3)]
    with serving(engines.engine("none")) as own:
        own.model.name = THERE
        with fronting(engines.engine("none").behind(Watching()), own.address) as front:

            def told(served: Served, model: str) -> tuple[str | None, str, int]:
                ask = served.client().chat.completions.create
                plain = ask(model=model, messages=messages, max_tokens=8)
                pieces = ask(model=model, messages=messages, max_tokens=8, stream=True)
                assert plain.usage is not None
                text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
                return plain.choices[0].message.content, text, plain.usage.prompt_tokens

            assert told(front, NAME) == told(own, THERE)
            assert told(front, NAME)[0]


def test_what_goes_on_is_written_anew_with_the_images_that_were_looked_at(
    front: Served, recorder: Recorder, watching: Watching
) -> None:
    clear = engines.image(2).convert("RGBA")
    clear.putalpha(90)
    parts = [
        {"type": "text", "text": "Is <image> this </s>?"},
        {"type": "image_url", "image_url": {"url": uri(clear), "detail": "low"}},
        {"type": "text", "text": "And?"},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        asked("", engines.image(1).resize((900, 700))) | {"name": "a<image>"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": parts},
    ]
    fields = {"temperature": 0.5, "top_k": 7, "min_p": 0.1, "max_tokens": 4, "user": "somebody", "seed": 3}
    headers = {"Authorization": "Bearer clients-own", "X-Secret": "1"}
    body = {"model": NAME, "messages": messages, **fields, "moderation": {"model": "any"}}
    httpx2.post(f"{front.address}/v1/chat/completions", json=body, headers=headers, trust_env=False)
    (sent,), (given,) = recorder.bodies, recorder.headers
    assert recorder.images() == watching.seen and len(watching.seen) == 2
    assert given[b"authorization"] == f"Bearer {KEY}".encode() and b"x-secret" not in given
    assert sent["messages"][1]["name"] == "a< image>"
    kinds = [[part["type"] for part in message["content"]] for message in sent["messages"] if message["role"] == "user"]
    assert kinds == [["image_url"], ["text", "image_url", "text"]]
    assert [message["content"] for message in sent["messages"] if message["role"] != "user"] == ["Be brief.", "No."]
    assert sent["messages"][3]["content"][0]["text"] == "Is < image> this < /s>?"
    expected = {key: value for key, value in fields.items() if key != "user"}
    assert {key: value for key, value in sent.items() if key != "messages"} == {"model": THERE, **expected}


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _noted() -> PngImagePlugin.PngInfo:
    noted = PngImagePlugin.PngInfo()
    noted.add_text("comment", "another image")
    noted.add_itxt("XML:com.adobe.xmp", "<x/>")
    noted.add(b"gAMA", (20_000).to_bytes(4, "big"))
    return noted


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageDescription] = 6, "another image"
    return exif


BESIDE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a colour profile": ("RGB", "PNG", {"icc_profile": _profile()}),
    "a colour profile of a JPEG": ("RGB", "JPEG", {"icc_profile": _profile(), "comment": b"another image"}),
    "a colour profile of a WEBP": ("RGB", "WEBP", {"icc_profile": _profile(), "exif": _exif()}),
    "words and a gamma": ("RGB", "PNG", {"pnginfo": _noted(), "dpi": (1, 1000)}),
    "how it is turned": ("RGB", "PNG", {"exif": _exif()}),
    "a colour that is clear": ("RGB", "PNG", {"transparency": engines.image(1).getpixel((3, 3))}),
    "a shade that is clear": ("L", "PNG", {"transparency": 255}),
    "entries that are clear": ("P", "PNG", {"transparency": b"\x00\x80" * 20}),
    "a frame behind it": ("P", "GIF", {"save_all": True, "append_images": [engines.image(2).convert("P")]}),
    "a frame of a PNG behind it": ("RGB", "PNG", {"save_all": True, "append_images": [engines.image(2)]}),
    "a frame of a JPEG behind it": ("RGB", "MPO", {"save_all": True, "append_images": [engines.image(2)]}),
}
"""Mode, format and what is saved beside the pixels."""


@pytest.mark.parametrize("size", [(64, 64), (700, 500)])
@pytest.mark.parametrize("name", BESIDE)
def test_an_image_goes_on_as_its_pixels_alone(
    front: Served, recorder: Recorder, watching: Watching, name: str, size: tuple[int, int]
) -> None:
    mode, format, beside = BESIDE[name]
    given = uri(engines.image(1).resize(size).convert(mode), format, **beside)
    assert post(front, [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": given}}]}]).is_success
    (part,) = recorder.bodies[0]["messages"][0]["content"]
    png = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    chunks, at = set(), 8
    while at < len(png):
        chunks.add(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    assert chunks == {b"IHDR", b"IDAT", b"IEND"}
    assert recorder.images() == watching.seen and len(watching.seen) == 1


def test_tools_go_on_as_words_that_the_guard_reads(front: Served, recorder: Recorder, watching: Watching) -> None:
    schema = {"type": "object", "properties": {"image_url": {"type": "string", "default": None}}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "the cup"}'}}
    messages = [
        *question(1),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It is red."},
        asked("So?"),
    ]
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "object"}}}
    answer = post(front, messages, tools=tools, tool_choice="auto", response_format=form)
    assert answer.status_code == 200, answer.text
    sent = recorder.bodies[0]
    assert (sent["tools"], sent["tool_choice"], sent["response_format"]) == (tools, "auto", form)
    assert sent["messages"][1:3] == messages[1:3]
    assert watching.asked[0].history == (("What is it?", 'look({"at": "the cup"})'),)
    assert watching.asked[0].text == "It is red.\nSo?"


def test_a_hint_stands_in_the_question_and_a_refusal_reaches_nobody(there: str, recorder: Recorder) -> None:
    hint = prompts.hint(DEFAULT, *RISK)
    refusal = prompts.refusal(DEFAULT, RISK[1])
    hinting = engines.engine("safety-head", says=RISK)
    refusing = engines.engine("safety-head", says=RISK, policy=Policy(DEFAULT, {"must_refuse": "refuse"}))
    with fronting(hinting, there) as served:
        assert post(served, question(1)).json()["choices"][0]["message"]["content"] == "A cup."
        image, text = recorder.bodies[0]["messages"][0]["content"]
        assert (image["type"], text["text"]) == ("image_url", f"What is it?\n{hint}")
        post(served, [asked("a"), asked("b", engines.image(1))])
        assert [each["content"][-1]["text"] for each in recorder.bodies[1]["messages"]] == ["a", f"b\n{hint}"]
        block = {"model": "any", "policy": {"input": {"mode": "block"}}}
        assert post(served, question(1), moderation=block).json()["choices"][0]["finish_reason"] == "content_filter"
        assert counted(served, "requests_total", action="hinted") == 2
    recorder.bodies.clear()
    with fronting(refusing, there) as served, serving(refusing) as local:
        for stream in (False, True):
            given = [post(each, question(1), stream=stream, moderation={"model": "any"}) for each in (served, local)]
            assert refusal in given[0].text and given[0].status_code == 200
            assert _without_id(given[0].text) == _without_id(given[1].text)
        assert counted(served, "requests_total", action="refused") == 2
    assert not recorder.bodies


def _without_id(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    told = [json.loads(line) if line != "[DONE]" else {} for line in lines]
    return [{key: value for key, value in each.items() if key not in ("id", "created")} for each in told]


def test_inline_moderation_is_added_to_what_the_upstream_says(there: str, recorder: Recorder) -> None:
    with fronting(engines.engine("safety-head", says=RISK), there) as served:
        ask = served.client().chat.completions.create
        options: dict[str, Any] = {
            "model": NAME,
            "messages": question(1),
            "extra_body": {"moderation": {"model": "any"}},
        }
        plain = ask(**options)
        assert plain.moderation.input.results[0].categories["illegal"] and plain.choices[0].message.content == "A cup."
        *pieces, last = list(ask(**options, stream=True))
        assert last.moderation.input.results[0].flagged and last.choices == [] and last.id == "1"
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "A cü"


PNG = uri(engines.image(1))
PART = {"type": "image_url", "image_url": {"url": PNG}}
UNSEEN: dict[str, Any] = {
    "an image on the network": {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    "an image on the disk": {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    "a cached image": {"type": "image_url", "image_url": None, "uuid": "1"},
    "an image with a cache key": {**PART, "uuid": "1"},
    "a cache key alone": {"type": "image_url", "uuid": "1"},
    "an image in text's place": {"type": "text", "text": "a", "image_url": {"url": PNG}},
    "an untyped image": {"image_url": PNG},
    "an image as a string": {"type": "image_url", "image_url": PNG},
    "an input image": {"type": "input_image", "image_url": PNG},
    "an image of transformers": {"type": "image", "url": PNG},
    "embeddings": {"type": "image_embeds", "image_embeds": "AAAA"},
    "a prompt's embeddings": {"type": "prompt_embeds", "data": "AAAA"},
    "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "audio on the network": {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
    "video": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
    "a file": {"type": "file", "file": {"file_id": "1"}},
    "a string": "What is it?",
    "a list": [PART],
    "nothing": None,
    "no type": {},
}
FIELDS: dict[str, Any] = {
    "mm_processor_kwargs": {"do_resize": False},
    "media_io_kwargs": {"image": {}},
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"a": 1},
    "prompt_embeds": "AAAA",
    "documents": [{"title": "a"}],
    "audio": {"voice": "a"},
    "modalities": ["text", "audio"],
    "add_generation_prompt": False,
    "continue_final_message": True,
    "generation_config": "{}",
    "n": 2,
    "tools": [{"type": "image", "url": PNG}],
    "response_format": {"type": "text", "image_url": PNG},
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_the_guard_cannot_see_goes_nowhere(front: Served, recorder: Recorder, name: str) -> None:
    for content in ([UNSEEN[name]], [image_part(engines.image(1)), UNSEEN[name], {"type": "text", "text": "a"}]):
        answer = post(front, [{"role": "user", "content": content}])
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert not recorder.bodies


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_change_what_the_upstream_reads_go_nowhere(front: Served, recorder: Recorder, name: str) -> None:
    assert post(front, question(1), **{name: FIELDS[name]}).status_code == 400
    assert not recorder.bodies


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_an_image_outside_a_users_turn_goes_nowhere(front: Served, recorder: Recorder, role: str) -> None:
    message = {"role": role, "content": [PART, {"type": "text", "text": "a"}]}
    turns = [message, asked("a")] if role == "system" else [asked("a"), message, asked("b")]
    assert post(front, turns).status_code == 400
    assert not recorder.bodies


def told(what: Any) -> list[bytes]:
    return [json.dumps(what).encode()]


ERROR = {"error": {"message": "too long\n/srv/secret", "type": "x"}}
ODD: dict[str, tuple[Any, int, str]] = {
    "a status of its own": ((500, JSON, told(ERROR)), 502, "upstream_failed"),
    "a redirect": ((302, JSON, told({})), 502, "upstream_failed"),
    "another key wanted": ((401, JSON, told(ERROR)), 502, "upstream_failed"),
    "too many requests": ((429, JSON, told(ERROR)), 429, "upstream_busy"),
    "a question too long": ((400, JSON, told(ERROR)), 400, "upstream_refused"),
    "a page": ((200, (b"content-type", b"text/html"), [b"<html>"]), 502, "upstream_shape"),
    "garbage": ((200, JSON, [b"\x00\xff garbage"]), 502, "upstream_shape"),
    "a list": ((200, JSON, told([1])), 502, "upstream_shape"),
    "an error with status 200": ((200, JSON, told(ERROR)), 502, "upstream_shape"),
    "two answers": ((200, JSON, told({**upstreams.COMPLETION, "choices": [{}, {}]})), 502, "upstream_shape"),
    "half an answer": ((200, JSON, [b'{"object":', BREAKS_OFF]), 502, "upstream_broke_off"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_an_error(front: Served, recorder: Recorder, name: str) -> None:
    recorder.answer, status, code = ODD[name]
    answer = post(front, question(1))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert "secret" not in answer.text and "Traceback" not in answer.text


ODD_STREAMS: dict[str, tuple[list[bytes], int, str]] = {
    "a page": ([b"<html>\n\n"], 502, "upstream_shape"),
    "an error": ([b"data: " + told(ERROR)[0] + b"\n\n", DONE], 502, "upstream_failed"),
    "another object": ([b'data: {"object": "x", "choices": []}\n\n', DONE], 502, "upstream_shape"),
    "an end at once": ([], 502, "upstream_broke_off"),
    "half of it": ([upstreams.chunk("A"), b'data: {"choi'], 200, "upstream_broke_off"),
    "half of it, broken off": ([upstreams.chunk("A"), BREAKS_OFF], 200, "upstream_broke_off"),
    "half of it, then garbage": ([upstreams.chunk("A"), b"\xff\xfe\n\n", DONE], 200, "upstream_shape"),
    "half of it, then an error": (
        [upstreams.chunk("A"), b"data: " + told(ERROR)[0] + b"\n\n", DONE],
        200,
        "upstream_failed",
    ),
}


@pytest.mark.parametrize("name", ODD_STREAMS)
def test_an_odd_stream_ends_in_an_error_and_is_never_done(front: Served, recorder: Recorder, name: str) -> None:
    pieces, status, code = ODD_STREAMS[name]
    recorder.answer = (200, EVENTS, pieces)
    before = counted(front, "guard_errors_total", stage="upstream")
    answer = post(front, question(1), stream=True)
    assert answer.status_code == status and b"[DONE]" not in answer.content and "secret" not in answer.text
    if status == 200:
        passed, _, error = answer.content.partition(upstreams.chunk("A"))
        assert not passed and json.loads(error.removeprefix(b"data: "))["error"]["code"] == code
    else:
        assert answer.json()["error"]["code"] == code
    assert counted(front, "guard_errors_total", stage="upstream") == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_hangs_is_an_error_in_time(hasty: Served, recorder: Recorder, stream: bool) -> None:
    recorder.answer = (200, EVENTS, [upstreams.chunk("A"), HANGS]) if stream else (200, JSON, [HANGS])
    started = time.monotonic()
    answer = post(hasty, question(1), stream=stream)
    assert time.monotonic() - started < 20 * SECONDS
    if stream and answer.status_code == 200:
        assert b"upstream_timeout" in answer.content and b"[DONE]" not in answer.content
    else:
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "server_error")


def test_no_upstream_is_an_error_and_the_guard_goes_on() -> None:
    with listening(Recorder()) as gone:
        pass
    with fronting(engines.engine("none").behind(Watching()), gone) as served:
        for stream in (False, True):
            answer = post(served, question(1), stream=stream)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
        with pytest.raises(ValueError, match="--upstream-model"):
            only_model(gone)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_upstreams_call(front: Served, recorder: Recorder, stream: bool) -> None:
    recorder.answer = (200, EVENTS, [upstreams.chunk("A"), HANGS]) if stream else (200, JSON, [HANGS])
    client = http.client.HTTPConnection(front.address.removeprefix("http://"))
    body = json.dumps({"model": NAME, "messages": question(1), "stream": stream})
    client.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert waited(lambda: bool(recorder.bodies))
    if stream:
        assert client.getresponse().read(8) == b'data: {"'
    client.close()
    assert waited(lambda: recorder.has_left)


def waited(holds: Callable[[], bool]) -> bool:
    """Whether it comes true long before an upstream's own time is over."""
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_a_detector_that_breaks_refuses_and_asks_nobody(there: str, recorder: Recorder) -> None:
    class Broken(Defense):
        name = "broken"

        def detect(self, request: Request, features: Any) -> Verdict:
            raise OSError("/srv/secret is gone")

    with fronting(engines.engine("none").behind(Broken()), there) as served:
        answer = post(served, question(1), moderation={"model": "any"})
        assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
        assert answer.json()["moderation"]["input"]["type"] == "error" and "secret" not in answer.text
        assert httpx2.get(f"{served.address}/healthz", trust_env=False).status_code == 503
    assert not recorder.bodies


class Transforms(Watching):
    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        return inputs


class Reviews(Watching):
    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        return reply


@pytest.mark.parametrize("defense", [Defense(), Transforms(), Reviews()], ids=["none", "transforms", "reviews"])
def test_a_defense_that_needs_the_model_itself_does_not_stand_in_front(defense: Defense) -> None:
    with pytest.raises(UsageError, match=f"--defense {defense.name} .* in front of another server; .*--output-guard"):
        check_engine(engines.engine("none").behind(defense))


@dataclass
class Asks(Defense):
    """Asks the model in one of its hooks."""

    hook: str
    name = "asks"

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        return self._asked("detect", request, Verdict(source=self.name))

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return self._asked("rewrite", request, request)

    def _asked(self, hook: str, request: Request, given: Any) -> Any:
        if self.hook == hook:
            self.ask([request])
        return given


@pytest.mark.parametrize("hook", ["detect", "rewrite"])
def test_a_defense_that_asks_a_model_that_is_not_here_does_not_begin_and_lets_nothing_through(
    there: str, recorder: Recorder, hook: str
) -> None:
    bare = engines.engine("none")
    engine = Engine(dataclasses.replace(bare.loaded, has_lm=False), Asks(hook), bare.device)
    check_engine(engine)
    with pytest.raises(UsageError, match="--defense asks .*without its LLM.*--output-guard"):
        check_trial(engine)
    check_trial(Engine(bare.loaded, Watching(), bare.device))
    with fronting(engine, there) as served:
        assert post(served, question(1)).json()["choices"][0]["finish_reason"] == "content_filter"
    assert not recorder.bodies


def test_the_upstream_is_asked_for_the_name_of_its_model(there: str, front: Served) -> None:
    assert only_model(there) == only_model(f"{there}/v1/") == THERE
    assert front.client().models.list().data[0].id == NAME
    with pytest.raises(openai.NotFoundError):
        front.client().chat.completions.create(model=THERE, messages=question())


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://a/v1", "http://a/v1?key=1", "http://user@a/v1", "http:///v1"]
)
def test_an_address_that_is_none_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="address of a server"):
        address(url)


def test_moderations_are_told_without_the_upstream(front: Served, recorder: Recorder, watching: Watching) -> None:
    parts = [image_part(engines.image(1)), {"type": "text", "text": "What is it?"}]
    told = front.client().moderations.create(model=NAME, input=parts)  # type: ignore[arg-type]  # parts as plain tables
    assert not told.results[0].flagged and len(watching.seen) == 1
    assert not recorder.bodies


def test_metrics_tell_the_upstreams_time(front: Served) -> None:
    before = counted(front, "upstream_seconds_count")
    post(front, question(1))
    post(front, question(1), stream=True)
    assert counted(front, "upstream_seconds_count") == before + 2
    assert "safevlm:upstream_seconds_bucket" in front.model.metrics.page().decode()
