"""A model behind a server: `safevlm serve`, or any other one that speaks OpenAI's chat completions.

What the server's guard saw is known as far as it says so in the answer's `moderation`, which it is asked for; a server
that does not know the field is asked without it, and then nothing is known.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from safevlm.files.text import half_character
from safevlm.serve.console.partners import ChatAnswer, Sampling
from safevlm.serve.console.told_verdicts import told_verdict
from safevlm.serve.console.transcript import openai_messages
from safevlm.types import Reply, Request
from safevlm.usage import UsageError

SERVER = "server"
"""Who refused, and whose verdict it is."""
NO_KEY = "none"
"""What is sent where no key is given; OpenAI's client wants one."""
SECONDS = 600.0
"""Between two pieces of an answer."""
CONNECT_SECONDS = 10.0
MESSAGE = 400
"""Characters of a server's error that are shown."""


class RemoteError(OSError):
    """A server that cannot be reached, or does not answer; the message says which and why."""


class RemoteModel:
    """A `ChatPartner`."""

    defense = ""
    policy = None

    def __init__(self, client: Any, address: str, name: str) -> None:
        """`client`: of the package `openai`."""
        self.client = client
        self.address = address
        self.name = name
        self.tells_moderation: bool | None = None
        """None: not known yet."""

    @classmethod
    def connect(cls, url: str, key: str = "", name: str = "") -> RemoteModel:
        """`name`: of the model, for a server that has several; none: its first one.

        UsageError: no address, or no key. RemoteError: nobody answers there, or lets us in. ImportError: no client.
        """
        try:
            from openai import NotFoundError, OpenAI, Timeout
        except ImportError as error:
            raise ImportError("a conversation with a server needs: pip install 'safevlm[client]'") from error
        address = base_url(url)
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise UsageError("the API key holds characters that no key has; copy it again")
        client = OpenAI(base_url=address, api_key=key or NO_KEY, timeout=Timeout(SECONDS, connect=CONNECT_SECONDS))
        with _errors_told(address):
            try:
                served = [model.id for model in client.models.list().data or ()]
            except NotFoundError:
                if not name:
                    raise RemoteError(f"{address} does not list its models; name one with --model") from None
                served = [name]
        if not name and not served:
            raise RemoteError(f"{address} has no model; name one with --model")
        return cls(client, address, name or served[0])

    @property
    def title(self) -> str:
        return f"{self.name} at {self.address}"

    def ask(self, request: Request, sampling: Sampling) -> RemoteAnswer:
        return RemoteAnswer(self, request, sampling)

    def behind(self, defense: str, policy: str | None) -> RemoteModel:
        raise ValueError(
            f"{self.address} decides itself what stands in front of its model, and nobody can ask around it; "
            "for another defense or policy, or none, talk to a model here: safevlm chat --model DIR"
        )

    def defenses(self) -> Sequence[str]:
        return ()

    def stream(self, body: dict[str, Any]) -> Any:
        """A stream of chunks. The server's errors are openai's."""
        from openai import BadRequestError, UnprocessableEntityError

        completions = self.client.chat.completions
        if self.tells_moderation is False:
            return completions.create(**body)
        both = {side: {"mode": "score"} for side in ("input", "output")}
        try:
            return completions.create(**body, extra_body={"moderation": {"model": self.name, "policy": both}})
        except (BadRequestError, UnprocessableEntityError):
            if self.tells_moderation:
                raise
            stream = completions.create(**body)  # its own errors are those of the question
            self.tells_moderation = False
            return stream


class RemoteAnswer:
    """An `AnswerStream` that a server sends."""

    def __init__(self, model: RemoteModel, request: Request, sampling: Sampling) -> None:
        self._model = model
        self._request = request
        self._sampling = sampling
        self._content, self._refusal, self._finish = "", "", ""
        self._moderation: object = None
        self._seconds = 0.0
        self._has_begun = False
        self._pieces = self._said()

    def __iter__(self) -> Generator[str]:
        return self._pieces

    def end(self) -> ChatAnswer | None:
        self._pieces.close()
        if not self._has_begun:
            return None
        verdict, account = told_verdict(self._moderation, SERVER, is_whole=bool(self._finish))
        is_refused = self._finish == "content_filter"
        if is_refused:
            account = (*account, "refused by the server's guard")
        reply = Reply(
            text=self._refusal or self._content,
            request=self._request,
            verdict=verdict,
            refused_by=SERVER if is_refused else "",
            seconds=self._seconds,
            trace=account,
            ended="length" if self._finish == "length" else "stop" if self._finish == "stop" else "",
        )
        return ChatAnswer(reply, account, self._model.title)

    def _said(self) -> Generator[str]:
        body = self._body()
        started = time.perf_counter()
        with _errors_told(self._model.address), self._model.stream(body) as chunks:
            for chunk in chunks:
                self._has_begun = True
                yield from self._pieces_of(chunk)
        self._seconds = time.perf_counter() - started
        if not self._finish:
            raise RemoteError(f"{self._model.address} broke off its answer; nothing of it is kept")
        if self._model.tells_moderation is None:
            self._model.tells_moderation = self._moderation is not None or None

    def _pieces_of(self, chunk: Any) -> Iterator[str]:
        told = chunk.to_dict(warnings=False)
        if isinstance(told.get("moderation"), Mapping):
            self._moderation = told["moderation"]
        for choice in told.get("choices") or ():
            delta = choice.get("delta") or {}
            self._finish = choice.get("finish_reason") or self._finish
            content, refusal = delta.get("content") or "", delta.get("refusal") or ""
            self._content += content
            self._refusal += refusal
            yield from filter(None, (content, refusal))

    def _body(self) -> dict[str, Any]:
        for name, said in (("question", self._request.text), ("system prompt", self._request.system)):
            if half := half_character(said):
                raise ValueError(f"the {name} holds {half}, which is no character; write it in UTF-8")
        names = {"temperature": "temperature", "top_p": "top_p", "seed": "seed", "max_new_tokens": "max_tokens"}
        given = {theirs: getattr(self._sampling, ours) for ours, theirs in names.items()}
        asked = {name: value for name, value in given.items() if value is not None}
        return {
            "model": self._model.name,
            "messages": openai_messages(self._request),
            "stream": True,
            **asked,
        }


def base_url(url: str) -> str:
    """`http://host:8000` → `http://host:8000/v1`; a path that is given stays. UsageError: no address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--server {url}: no address; write one such as http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("--server: an address of host, port and path alone; a key goes into SAFEVLM_API_KEY")
    return url.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"


@contextmanager
def _errors_told(address: str) -> Iterator[None]:
    """Whatever goes wrong between client and server is one line."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    try:
        yield
    except APIStatusError as error:
        if error.status_code in (401, 403):  # some servers repeat a part of the key
            raise RemoteError(
                f"{address} does not let us in ({error.status_code}): check --api-key or SAFEVLM_API_KEY"
            ) from error
        raise RemoteError(f"{address} answered {error.status_code}: {_short(error)}") from error
    except APITimeoutError as error:
        raise RemoteError(f"{address} did not answer in time") from error
    except APIConnectionError as error:
        raise RemoteError(f"{address} cannot be reached: {_short(error.__cause__ or error)}") from error
    except (RemoteError, UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - what is no answer in OpenAI's form breaks its client in many ways
        raise RemoteError(f"{address}: {_short(error)}") from error


def _short(error: BaseException) -> str:
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, Mapping) else None
    text = " ".join(str(said or error).split()) or type(error).__name__
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}…"
