"""Images on the network: fetched from listed domains alone, from public addresses alone, once, and within bounds."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx2
import pytest

from safevlm.serve.errors import ApiError
from safevlm.serve.fetching import Domain, Fetcher, is_public
from tests.serve.serving import listening

NAME = "images.example.org"
IMAGE = b"an image" * 40
PLACE = "messages[0].content[0].image_url.url"


class Site:
    """A server with an image, whose other paths are traps."""

    def __init__(self) -> None:
        self.hosts: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.hosts.append(dict(scope["headers"])[b"host"])
        headers = {"/moved": [(b"location", b"/a.png")], "/packed": [(b"content-encoding", b"gzip")]}
        status = {"/moved": 302, "/gone": 404}.get(scope["path"], 200)
        await send({"type": "http.response.start", "status": status, "headers": headers.get(scope["path"], [])})
        if scope["path"] == "/slow":
            await receive()
            await receive()  # nothing comes but the client's leave
            return
        await send({"type": "http.response.body", "body": IMAGE * (50 if scope["path"] == "/large" else 1)})


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Site, int]]:
    site = Site()
    with listening(site) as address:
        yield site, int(address.rsplit(":", 1)[1])


def fetched(url: str, *domains: str, leads_to: tuple[str, ...] = ("127.0.0.1",), **options: Any) -> bytes:
    async def resolve(host: str, port: int) -> list[str]:
        return list(leads_to)

    fetcher = Fetcher(domains, 4000, resolve=resolve, **options)
    uri = asyncio.run(fetcher.fetch(url, PLACE))
    return base64.b64decode(uri.partition("base64,")[2])


def anywhere(address: object) -> bool:
    return True


def test_a_listed_domain_is_asked_at_the_address_that_was_checked(
    site: tuple[Site, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server, port = site
    domain = f"http://{NAME}:{port}"
    assert fetched(f"http://{NAME}:{port}/a.png", domain, is_allowed=anywhere) == IMAGE
    assert server.hosts[-1] == f"{NAME}:{port}".encode()
    assert "a.png" not in caplog.text  # a URL is a client's content


@pytest.mark.parametrize("path", ["moved", "gone", "packed", "large", "slow"])
def test_what_is_no_image_at_once_is_refused(site: tuple[Site, int], path: str) -> None:
    server, port = site
    with pytest.raises(ApiError) as caught:
        fetched(f"http://{NAME}:{port}/{path}", f"http://{NAME}:{port}", is_allowed=anywhere, seconds=0.5)
    assert caught.value.status == 400 and caught.value.param == PLACE and "127" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        f"http://{NAME}/a.png",
        f"https://{NAME}:8443/a.png",
        f"https://other.{NAME}/a.png",
        f"https://{NAME}.evil.org/a.png",
        f"https://{NAME}./a.png",
        f"https://user:secret@{NAME}/a.png",
        f"https://evil.org/{NAME}",
        f"https://evil.org#{NAME}",
        f"https://evil.org\\@{NAME}/a.png",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "file:///etc/passwd",
        f"ftp://{NAME}/a.png",
        "//images.example.org/a.png",
        "https://",
        "x" * 70_000,
    ],
)
def test_what_is_not_listed_is_not_even_looked_up(url: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise AssertionError("looked up")

    with pytest.raises(ApiError) as caught:
        asyncio.run(Fetcher([NAME], 4000, resolve=resolve).fetch(url, PLACE))
    assert caught.value.status == 400


@pytest.mark.parametrize("leads_to", [("127.0.0.1",), ("8.8.8.8", "10.0.0.1"), ("::1",), ("fe80::1%eth0",), ()])
def test_a_name_that_leads_inside_is_refused(leads_to: tuple[str, ...]) -> None:
    with pytest.raises(ApiError, match="not public"):
        fetched(f"https://{NAME}/a.png", NAME, leads_to=leads_to)


def test_an_encrypted_connection_goes_to_the_checked_address_and_asks_for_the_name() -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hear() -> None:
            connection, _ = listener.accept()
            heard.append(connection.recv(4096))
            connection.close()

        thread = Thread(target=hear, daemon=True)
        thread.start()
        with pytest.raises(ApiError, match="cannot be reached"):
            fetched(f"https://{NAME}:{port}/a.png", f"https://{NAME}:{port}", is_allowed=anywhere)
        thread.join(10)
    assert NAME.encode() in heard[0]  # of TLS's first message


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_an_address_is_public_where_all_that_it_stands_for_is(address: str, expected: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is expected


@pytest.mark.parametrize("text", ["", "ftp://a.org", "a.org/path", "a b", "*", "http://", "a.org:x", "user@a.org"])
def test_a_domain_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no domain"):
        Domain.read(text)


BELOW = {"a.example.org": True, "b.a.example.org": True, "example.org": False, "bexample.org": False}


@pytest.mark.parametrize("host", BELOW)
def test_a_dot_in_front_lists_all_below(host: str) -> None:
    assert Domain.read(".example.org").has(httpx2.URL(f"https://{host}/a.png")) is BELOW[host]
