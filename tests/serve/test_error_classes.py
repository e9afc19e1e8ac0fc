"""Each exception of OpenAI's client that can come of a request here, by what it stands for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest

from tests.engine import engines
from tests.serve.serving import NAME, Served, asked, serving
from tests.serve.test_broken_guard import Moody

KEY = "a key"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    defense = Moody()
    with serving(engines.engine("none").behind(defense), keys=(KEY,), batch=1, waiting=1, body_bytes=20_000) as running:
        yield running
        defense.goes_on.set()


def moody(served: Served) -> Moody:
    defense = served.model.engine.defense
    assert isinstance(defense, Moody)
    return defense


def ask(client: openai.OpenAI, text: str = "What is it?", **options: object) -> object:
    return client.chat.completions.create(**{"model": NAME, "messages": [asked(text)], "max_tokens": 2} | options)


def broken(served: Served) -> object:
    moody(served).mood = "leaves"
    try:
        return ask(served.client(api_key=KEY))
    finally:
        moody(served).mood = "well"


ERRORS: dict[type[openai.APIStatusError], tuple[Callable[[Served], object], int, str]] = {
    openai.BadRequestError: (
        lambda served: ask(served.client(api_key=KEY), temperature=9),
        400,
        "invalid_request_error",
    ),
    openai.AuthenticationError: (lambda served: ask(served.client(api_key="other")), 401, "authentication_error"),
    openai.PermissionDeniedError: (
        lambda served: ask(served.client(api_key=KEY, default_headers={"Host": "evil.example"})),
        403,
        "permission_error",
    ),
    openai.NotFoundError: (lambda served: ask(served.client(api_key=KEY), model="gpt-9"), 404, "not_found_error"),
    openai.InternalServerError: (broken, 500, "server_error"),
    openai.APIStatusError: (lambda served: ask(served.client(api_key=KEY), "x" * 30_000), 413, "invalid_request_error"),
}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_is_the_clients_own_exception_with_its_parts(
    served: Served, kind: type[openai.APIStatusError]
) -> None:
    provoke, status, type_ = ERRORS[kind]
    with pytest.raises(openai.APIStatusError) as caught:
        provoke(served)
    error = caught.value
    assert type(error) is kind and (error.status_code, error.type) == (status, type_)
    assert isinstance(error.body, dict) and set(error.body) == {"message", "type", "param", "code"}
    assert error.message and "Traceback" not in error.message


def test_a_full_queue_is_a_rate_limit_with_the_seconds_to_wait(served: Served) -> None:
    client, defense = served.client(api_key=KEY), moody(served)
    defense.mood = "hangs"
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, client)
        _until(lambda: served.model.batches.busy_since is not None)
        second = threads.submit(ask, client)
        _until(lambda: served.model.batches.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client)
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        assert (caught.value.code, caught.value.type) == ("queue_full", "rate_limit_error")
        defense.mood = "well"
        defense.goes_on.set()
        assert first.result() and second.result()
    defense.goes_on.clear()


def test_a_client_that_waits_no_longer_times_out_and_frees_its_place(served: Served) -> None:
    defense = moody(served)
    defense.mood = "hangs"
    try:
        with pytest.raises(openai.APITimeoutError):
            ask(served.client(api_key=KEY, timeout=0.5))
        _until(lambda: 'safevlm:requests_total{action="left"} 1.0' in metrics(served))
    finally:
        defense.mood = "well"
        defense.goes_on.set()
    _until(lambda: served.model.batches.busy_since is None and not served.model.batches.waiting)
    defense.goes_on.clear()
    assert ask(served.client(api_key=KEY))


def metrics(served: Served) -> str:
    return httpx2.get(f"{served.address}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text


def test_a_server_that_is_gone_is_a_connection_error() -> None:
    with serving(engines.engine("none")) as served:
        client = served.client()
    with pytest.raises(openai.APIConnectionError):
        ask(client)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_so()
