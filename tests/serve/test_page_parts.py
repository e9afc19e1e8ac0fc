"""What the page is made of: whose an image is and when it goes, what a request may name, what a conversation says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import new

from safevlm.serve.access import Keys
from safevlm.serve.errors import ApiError
from safevlm.serve.page import bodies, turns
from safevlm.serve.page.sessions import SECONDS, Sessions
from safevlm.serve.page.uploads import AGE, Uploads
from safevlm.serve.page.visitors import Visitors, new_visitor, visitor_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploads(clock: Clock) -> Iterator[Uploads]:
    made = Uploads(1 << 20, grace=60, now=clock)
    yield made
    made.close()


def sent(uploads: Uploads, visitor: str, name: str = "a.png") -> str:
    path = uploads.folder / name / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"1")
    uploads.keep(visitor, [str(path)])
    return str(path)


def test_an_image_stays_while_its_page_is_open_and_goes_after_it_was_closed(uploads: Uploads, clock: Clock) -> None:
    uploads.opened("ann", "tab")
    name = sent(uploads, "ann")
    uploads.uri(name, "ann", "tab")
    clock.now = 2 * AGE
    uploads.sweep()
    assert Path(name).exists()
    uploads.closed("ann", "tab")
    clock.now += 59
    uploads.sweep()
    uploads.opened("ann", "tab")  # the line was lost for a minute
    clock.now += 59
    uploads.sweep()
    assert Path(name).exists()
    uploads.closed("ann", "tab")
    clock.now += 60
    uploads.sweep()
    assert not Path(name).parent.exists()
    assert not uploads.is_own("ann", name)


def test_of_two_pages_each_keeps_what_it_asked_about(uploads: Uploads, clock: Clock) -> None:
    uploads.opened("ann", "one")
    uploads.opened("ann", "two")
    first, both, unasked = (sent(uploads, "ann", name) for name in ("a.png", "b.png", "c.png"))
    uploads.uri(first, "ann", "one")
    uploads.uri(both, "ann", "one")
    uploads.uri(both, "ann", "two")
    uploads.forget("ann", "one")
    assert [Path(name).exists() for name in (first, both, unasked)] == [False, True, True]


def test_the_same_file_of_two_visitors_goes_with_the_last_of_them(uploads: Uploads, clock: Clock) -> None:
    name = sent(uploads, "ann")
    sent(uploads, "bob")
    assert not uploads.is_own("eve", name)
    uploads.forget("ann", "tab")
    assert not uploads.is_own("ann", name)
    with pytest.raises(ApiError):
        uploads.uri(name, "ann", "tab")
    assert uploads.uri(name, "bob", "tab")
    clock.now = AGE
    uploads.sweep()
    assert not Path(name).exists()


def test_examples_are_everybodys_and_stay(uploads: Uploads, clock: Clock) -> None:
    name = str(uploads.add_example("example.png", new("RGB", (2, 2))))
    assert uploads.is_own("", name)
    assert uploads.uri(name, "ann", "tab").startswith("data:")
    uploads.forget("ann", "tab")
    clock.now = 2 * AGE
    uploads.sweep()
    assert Path(name).exists()


def test_files_count_towards_a_bound(uploads: Uploads) -> None:
    for number in range(16):
        uploads.check_room()
        sent(uploads, "ann", f"{number}.png")
    with pytest.raises(ApiError) as caught:
        uploads.check_room()
    assert caught.value.status == 429


def checked(value: Any) -> Any:
    return bodies.checked(json.dumps({"data": value}).encode(), lambda name: name == "/own/a.png")["data"]


def test_a_file_is_named_by_its_path_or_its_address_here() -> None:
    for path in ("/own/a.png", "http://me/ui/gradio_api/file=/own/a.png", "/ui/gradio_api/file=/own/a.png"):
        assert checked([{"deep": {"path": path, "url": "http://evil"}}]) == [
            {"deep": {"path": "/own/a.png", "url": None}}
        ]


@pytest.mark.parametrize(
    "value",
    [
        {"path": "/own/../own/a.png"},
        {"path": "/other/a.png"},
        {"path": ["/own/a.png"]},
        {"path": "http://evil/a.png"},
        {"path": {"path": "/own/a.png"}},
        {"component": "image"},
    ],
)
def test_what_is_not_the_visitors_own_is_not_passed_on(value: object) -> None:
    with pytest.raises(ApiError) as caught:
        checked([[value]])
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100 + b"1" + b"}" * 100])
def test_what_is_no_body_of_the_page_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError):
        bodies.checked(body, lambda name: True)


def test_bubbles_are_no_turns_and_unanswered_questions_are_left_out() -> None:
    def said(role: str, *content: object, **more: object) -> dict[str, object]:
        return {"role": role, "content": list(content), **more}

    def words(text: str) -> dict[str, str]:
        return {"type": "text", "text": text}

    image = {"type": "file", "file": {"path": "a"}}
    bubble = said("assistant", words("why"), metadata={"title": "Guard"})
    history = [
        said("user", image, words("one")),
        bubble,
        said("assistant", words("&lt;1&gt;")),
        said("assistant", words("bare"), metadata={"title": "bare"}),
        said("user", words("lost")),
        bubble,
    ]
    told = turns.messages(history, {"text": "two", "files": ["b"]}, lambda name: f"data:{name}")
    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    assert told[0]["content"] == [{"type": "image_url", "image_url": {"url": "data:a"}}, words("one")]
    assert told[1]["content"] == "<1>"
    assert told[2]["content"] == [{"type": "image_url", "image_url": {"url": "data:b"}}, words("two")]


def test_a_page_is_the_visitors_who_named_it_first() -> None:
    visitors = Visitors()
    visitors.check("page", "ann")
    visitors.check("page", "ann")
    with pytest.raises(ApiError):
        visitors.check("page", "bob")


def test_a_name_is_taken_from_a_cookie_only_whole() -> None:
    name = new_visitor()
    assert visitor_of(f"a=b; safevlm-visitor={name}") == name
    for cookies in ("", "safevlm-visitor=short", f"safevlm-visitor={name}x", f"other={name}", "\0="):
        assert visitor_of(cookies) == ""


def test_a_login_ends_and_a_key_that_was_taken_out_is_out() -> None:
    clock = Clock()
    keys = {"check": Keys(("secret",))}

    class Current:
        def check(self, headers: dict[bytes, bytes]) -> str:
            return keys["check"].check(headers)

    sessions = Sessions(Current(), clock)
    clock.now = 1.0
    cookie = f"safevlm-page={sessions.begin('secret')}"
    sessions.caller(cookie)
    keys["check"] = Keys(("another",))
    with pytest.raises(ApiError):
        sessions.caller(cookie)
    keys["check"] = Keys(("secret",))
    clock.now += SECONDS
    with pytest.raises(ApiError):
        sessions.caller(cookie)
