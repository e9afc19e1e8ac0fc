"""Images on the network, from the domains that the server's owner names and from nowhere else.

The guard fetches them itself, once: what an upstream would fetch later may be another image, and an address inside its
own network is not for its clients to reach. No redirect is followed, a name must lead to public addresses alone, and
the connection goes to the address that was checked, whatever the name leads to a moment later.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx2

from safevlm.serve.client_log import hide_urls
from safevlm.serve.errors import ApiError

SECONDS = 5.0
"""For one image, from the name to its last byte."""
AT_ONCE = 8
"""Images that are fetched at a time; each takes its bytes in memory while it is."""
PORTS = {"https": 443, "http": 80}
EMBEDDED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that a gateway turns into the IPv4 address in their last four bytes (RFC 6052)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Name and port → addresses."""


@dataclass(frozen=True)
class Domain:
    """Where images may come from: `images.example.org`, or `.example.org` with all below it.

    With `http://` in front unencrypted, and with `:8443` behind at that port.
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Domain:
        """ValueError: no such domain."""
        scheme, found, rest = text.partition("://")
        scheme, rest = (scheme, rest) if found else ("https", text)
        host, _, port = rest.partition(":")
        is_name = host.removeprefix(".").replace("-", "").replace(".", "").isalnum() and host.isascii()
        if scheme not in PORTS or not is_name or not (not port or port.isdigit()):
            raise ValueError(f"{text}: no domain; write images.example.org, or .example.org for all below it")
        return cls(scheme, host.lower(), int(port or PORTS[scheme]))

    def has(self, url: httpx2.URL) -> bool:
        host = name_of(url)
        is_host = host == self.host or (self.host.startswith(".") and host.endswith(self.host))
        return is_host and url.scheme == self.scheme and (url.port or PORTS[self.scheme]) == self.port


class Fetcher:
    """Fetches images of some domains."""

    def __init__(
        self,
        domains: Iterable[str],
        most_bytes: int,
        *,
        seconds: float = SECONDS,
        resolve: Resolve | None = None,
        is_allowed: Callable[[Address], bool] | None = None,
    ) -> None:
        """`resolve`, `is_allowed`: how names are looked up, and which addresses may be asked (public ones).

        ValueError: no such domain.
        """
        hide_urls()
        self.domains = [Domain.read(domain) for domain in domains]
        self.most_bytes = most_bytes
        self.seconds = seconds
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._resolve = resolve or addresses_of
        self._is_allowed = is_allowed or is_public

    async def fetch(self, url: str, place: str) -> str:
        """The image's file as a `data:` URI. ApiError 400 with `place`: not from here, or it could not be had."""
        try:
            async with self._turn, asyncio.timeout(self.seconds):
                data = await self._fetched(self._listed(url))
        except TimeoutError as error:
            raise _failed(place, f"it did not come in {self.seconds:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise _failed(place, "its server cannot be reached") from error
        except _Unfit as error:
            raise _failed(place, str(error)) from error
        return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"

    def _listed(self, url: str) -> httpx2.URL:
        parsed = httpx2.URL(url)
        if parsed.userinfo or not any(domain.has(parsed) for domain in self.domains):
            raise _Unfit("this server fetches nothing from there; send data:image/png;base64,…")
        return parsed

    async def _fetched(self, url: httpx2.URL) -> bytes:
        port = url.port or PORTS[url.scheme]
        found = [ipaddress.ip_address(each.partition("%")[0]) for each in await self._resolve(name_of(url), port)]
        if not found or not all(map(self._is_allowed, found)):
            raise _Unfit("its name leads to an address that is not public")
        name = name_of(url) if port == PORTS[url.scheme] else f"{name_of(url)}:{port}"
        headers = {"Host": name, "Accept": "image/*", "Accept-Encoding": "identity"}
        checked = url.copy_with(host=str(found[0]))
        async with httpx2.AsyncClient(timeout=self.seconds, follow_redirects=False, trust_env=False) as client:
            asked = client.stream("GET", checked, headers=headers, extensions={"sni_hostname": name_of(url)})
            async with asked as response:
                return await self._read(response)

    async def _read(self, response: Any) -> bytes:
        if response.status_code != httpx2.codes.OK:
            raise _Unfit(f"its server answered with status {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Unfit("its server packed it")
        read = bytearray()
        async for piece in response.aiter_raw():
            read += piece
            if len(read) > self.most_bytes:
                raise _Unfit(f"more than {self.most_bytes:,} bytes")
        return bytes(read)


class _Unfit(Exception):
    """Why an image is not fetched; it names no address."""


async def addresses_of(host: str, port: int) -> list[str]:
    """All that the name leads to. OSError: nothing."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


def name_of(url: httpx2.URL) -> str:
    """As it stands in DNS and certificates."""
    return url.raw_host.decode("ascii").lower()


def is_public(address: Address) -> bool:
    """Whether it is one of the open network, also where an IPv6 address stands for an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        inner += [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if address in EMBEDDED else []
        if not all(is_public(each) for each in inner if each is not None):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _failed(place: str, why: str) -> ApiError:
    return ApiError(400, f"{place}: {why}", param=place, code="invalid_image")
