"""The chat page asks through the same guard as the API, and gives nothing away."""

from __future__ import annotations

import html
import io
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from safevlm.types import Generation, Request
from tests.engine import engines
from tests.serve.paging import NEEDS_GRADIO, Paged, Visitor, paged, until, uploaded
from tests.serve.serving import Served

pytestmark = NEEDS_GRADIO

RISK = ("must_refuse", "illegal")
UPLOAD = "/ui/gradio_api/upload"


FILE = "/ui/gradio_api/file="


def png() -> bytes:
    data = io.BytesIO()
    engines.image(1).save(data, "PNG")
    return data.getvalue()


PNG = {"files": ("a.png", png())}


def browser(served: Served) -> httpx2.Client:
    """Has loaded the page."""
    cookies = httpx2.get(f"{served.address}/ui/", trust_env=False).cookies
    return httpx2.Client(base_url=served.address, trust_env=False, cookies=cookies)


def upload(client: httpx2.Client) -> str:
    """The file's name."""
    return str(client.post(UPLOAD, files=PNG).json()[0])


def file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def join(client: httpx2.Client, message: object, history: object = ()) -> httpx2.Response:
    """Asks as the page does."""
    config = client.get("/ui/config").json()
    number = next(each["id"] for each in config["dependencies"] if each["api_name"] == "chat")
    data = [message, history, "as the server does", "as the server does", False]
    body = {"fn_index": number, "session_hash": "page-of-one", "data": data}
    return client.post("/ui/gradio_api/queue/join", json=body)


def requests(served: Served) -> float:
    """That came to an end."""
    samples = [each for metric in served.model.metrics.registry.collect() for each in metric.samples]
    return sum(each.value for each in samples if each.name == "safevlm:requests_total")


@contextmanager
def watching(served: Served, seen: list[Request]) -> Iterator[None]:
    """Notes what the model is asked."""
    answer = served.model.answer

    def noting(question: Any, *more: Any, **options: Any) -> Any:
        seen.append(question.request)
        return answer(question, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.model, "answer", noting)
        yield


def metric(served: Served, name: str, **labels: str) -> float:
    return served.model.metrics.registry.get_sample_value(f"safevlm:{name}", labels) or 0.0


@pytest.fixture(scope="module")
def plain() -> Iterator[Paged]:
    """Guarded by nobody, which it says; it answers in few words."""
    engine = engines.engine()
    with engines.answering(engine, "<b>5</b> &lt; 6"), paged(engine) as served:
        yield served


@pytest.fixture(scope="module")
def risky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    """Sees a risk in every image, hints, and offers more."""
    refuses = tmp_path_factory.mktemp("policy") / "refuses.yaml"
    refuses.write_text("levels: {must_refuse: refuse}\n")
    engine = engines.engine("safety-head", says=RISK)
    offers = {"defenses": ("none",), "policies": (refuses,), "compares": True}
    with engines.answering(engine, "There is a cup."), paged(engine, offers=offers) as served:
        yield served


@pytest.fixture(scope="module")
def visitor(risky: Paged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with Visitor(risky, tmp_path_factory.mktemp("files")) as visitor:
        yield visitor


def test_the_page_answers_as_the_engine_does_and_counts_as_the_api_does(plain: Paged, tmp_path: Path) -> None:
    engine = plain.model.engine
    before = metric(plain, "requests_total", action="passed"), metric(plain, "images_total")
    seen: list[Request] = []
    with Visitor(plain, tmp_path) as visitor, watching(plain, seen):
        first = visitor.ask("What is it?", engines.image(1))
        told = visitor.ask("And this?", engines.image(2), goes_on=True, compares=True)
    said = engine.reply(Request("What is it?", (engines.image(1),)), Generation()).text
    assert seen[1].history == (("What is it?", said),)  # as the model said it
    assert [request.turns for request in seen] == [(("What is it?", 1),), (("What is it?", 1), ("And this?", 1))]
    assert html.unescape(first.words) == said
    assert "<" not in first.words  # and as no part of the page
    assert first.titles == ("Guard: did not look answered",)
    assert len(told.titles) == 2  # nobody offered the bare model
    assert metric(plain, "requests_total", action="passed") == before[0] + 2
    assert metric(plain, "images_total") == before[1] + 1 + 2  # of all turns


def test_a_visitor_makes_the_guard_stricter_and_not_laxer(visitor: Visitor) -> None:
    told = visitor.ask("What is it?", engines.image(1))
    strict = visitor.ask("What is it?", engines.image(1), policy="refuse whatever is flagged")
    for each in (told, strict):
        assert "must refuse" in each.titles[0]
        assert "illegal" in each.titles[0]
    assert "answered with a hint" in told.titles[0]
    assert "refused" in strict.titles[0]
    assert strict.words
    with pytest.raises(Exception, match="."):
        visitor.ask("What is it?", engines.image(1), defense="oracle")


def test_each_image_has_a_verdict_of_its_own_and_the_question_counts_once(risky: Paged, visitor: Visitor) -> None:
    before = requests(risky), metric(risky, "images_total")
    told = visitor.ask("What is it?", engines.image(1), engines.image(2))
    assert len(told.titles) == 3
    for title, name in zip(told.titles, ("Image 1: ", "Image 2: ", "All 2 images: "), strict=True):
        assert title.startswith(name)
        assert "must refuse" in title and "illegal" in title
    later = visitor.ask("And this?", engines.image(3), goes_on=True)
    assert [title.split(":")[0] for title in later.titles] == ["This image", "All 3 images"]
    assert (requests(risky), metric(risky, "images_total")) == (before[0] + 2, before[1] + 2 + 3)


def test_a_visitor_chooses_among_what_is_offered_and_sees_the_bare_model_beside(visitor: Visitor) -> None:
    image = engines.image(1)
    assert "refused" in visitor.ask("What is it?", image, policy="refuses").titles[0]
    assert "did not look" in visitor.ask("What is it?", image, defense="none").titles[0]
    told = visitor.ask("What is it?", image, policy="refuse whatever is flagged", compares=True)
    assert "refused" in told.titles[0]
    assert "without a guard" in told.titles[1]
    assert told.inside[1] == "There is a cup."
    assert told.words != "There is a cup."


def test_what_cannot_be_read_is_one_line_and_a_broken_guard_refuses(
    risky: Paged, visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    told = visitor.ask("What is it?", broken)
    assert not told.words
    assert "Not answered" in told.titles[0]
    assert "\n" not in told.titles[0]
    assert str(tmp_path) not in told.titles[0]

    def breaks(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(risky.model.engine.defense, "detect", breaks)
    for images in (1, 2):
        told = visitor.ask("What is it?", *map(engines.image, range(images)))
        assert "refused" in told.titles[-1]
        assert "secret" not in "".join((*told.titles, *told.inside, told.words))
    assert risky.model.trouble()


def test_an_image_is_its_visitors_alone_and_nothing_is_fetched(plain: Paged) -> None:
    with browser(plain) as one, browser(plain) as other:
        name = upload(one)
        assert one.get(FILE + name).status_code == 200
        assert other.get(FILE + name).status_code == 404
        assert httpx2.get(f"{plain.address}{FILE}{name}", trust_env=False).status_code == 404
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.3)
            away = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
            for client, path in ((other, name), (one, away), (one, "/etc/hostname"), (one, f"{name}/../../a.png")):
                assert join(client, {"text": "", "files": [file(path)]}).status_code == 400
            with pytest.raises(TimeoutError):
                listener.accept()
        component = {"component": "image", "value": file(name), "constructor_args": {}}
        assert join(one, {"text": "", "files": []}, [{"role": "user", "content": component}]).status_code == 400
        assert join(one, {"text": "", "files": [file(name)]}).status_code == 200
        assert other.get("/ui/gradio_api/queue/data?session_hash=page-of-one").status_code == 403
        assert other.get("/ui/gradio_api/heartbeat/page-of-one").status_code == 403
        assert httpx2.post(plain.address + UPLOAD, files=PNG, trust_env=False).status_code == 403


def test_images_are_bounded_and_go_with_their_page_and_a_page_does_not_hold_up_the_server(tmp_path: Path) -> None:
    bounds = {"image_bytes": 3000, "pixels": 64 * 64 + 1, "held_bytes": 100_000}
    with paged(engines.engine(), grace=1.0, **bounds) as served, browser(served) as client:
        large = {"files": ("a.png", b"0" * 3001)}
        assert client.post(UPLOAD, files=large).status_code == 413
        with client.stream("GET", "/ui/gradio_api/heartbeat/first") as beats:
            alive = beats.iter_raw()
            next(alive)
            upload(client)
            time.sleep(2.5)  # longer than it takes to go
            assert len(uploaded()) == 1
        until(lambda: not uploaded())
        with Visitor(served, tmp_path) as visitor:
            told = visitor.ask("What is it?", engines.image(1).resize((65, 64)), goes_on=True)
            assert "Not answered" in told.titles[0] and "pixels" in told.titles[0]
            assert not told.words
            upload(client)
            assert client.post(UPLOAD, files=PNG).status_code == 429
        with client.stream("GET", "/ui/gradio_api/heartbeat/second") as beats:
            alive = beats.iter_raw()
            next(alive)
            folder = uploaded()[0].parents[1]
            served.page.stopping.tell()
            started = time.monotonic()
            list(alive)
            assert time.monotonic() - started < 2
    assert not folder.exists()


def test_only_the_page_itself_asks_and_only_what_it_needs_is_there(plain: Paged) -> None:
    with httpx2.Client(base_url=plain.address, trust_env=False) as client:
        assert client.get("/").headers["location"] == "/ui/"
        page = client.get("/ui/")
        assert page.status_code == 200
        assert "connect-src 'self'" in page.headers["content-security-policy"]
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.?https?:", page.text)
        config = client.get("/ui/config").json()
        assert not config["analytics_enabled"]
        files = {"files": ("a.png", b"123")}
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "evil.example"},
        ):
            assert client.post(UPLOAD, files=files, headers=headers).status_code == 403
        for path in ("monitoring", "gradio_api/vibe-code", "gradio_api/proxy=http://a", "gradio_api/file=/etc/passwd"):
            assert client.get(f"/ui/{path}").status_code == 404
        assert client.post(UPLOAD, files=files, headers={"Origin": plain.address}).status_code == 200
        assert client.post("/ui/gradio_api/queue/join", content=b"[" * 100_000).status_code == 400
        assert client.post("/v1/chat/completions", files=files).status_code == 415


def test_with_keys_the_page_asks_for_one() -> None:
    with paged(engines.engine(), keys=("secret",)) as served, httpx2.Client(base_url=served.address) as client:
        assert client.get("/ui/").headers["location"] == "/ui/login"
        for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=a"):
            assert client.get(f"/ui/{path}").status_code == 401
        assert client.post(UPLOAD, files={"files": ("a.png", b"1")}).status_code == 401
        wrong = client.post("/ui/login", data={"key": "other"})
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
        entered = client.post("/ui/login", data={"key": "secret"})
        assert "secret" not in entered.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= set(entered.headers["set-cookie"].split("; "))
        assert client.get("/ui/config").status_code == 200
        assert client.get("/v1/models").status_code == 401  # a page's login is no key of the API
        client.post("/ui/logout")
        assert client.get("/ui/config").status_code == 401
