"""A real server with a chat page, and a visitor who asks through the page's own protocol."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image

from safevlm.engine import Engine
from safevlm.serve.access import Keys
from safevlm.serve.app import create_app
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.limits import Limits
from safevlm.serve.page.offers import USUAL, Offers, offered
from safevlm.serve.page.page import Page, PageExample
from safevlm.serve.page.uploads import GRACE
from tests.serve.serving import NAME, Served, listening

NEEDS_GRADIO = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None,
    reason="gradio is not installed: pip install --no-deps -r requirements-page.txt",
)
"""Importing it takes seconds, which a worker without such a test is spared."""


@dataclass(frozen=True)
class Paged(Served):
    """A server with a page."""

    page: Page


@dataclass(frozen=True)
class Told:
    """An answer of the page."""

    titles: tuple[str, ...]
    """Of bubbles, in order."""
    inside: tuple[str, ...]
    """What stands in them."""
    words: str
    """The model's, or the refusal."""


@contextmanager
def paged(
    engine: Engine,
    *,
    offers: dict[str, Any] | None = None,
    keys: tuple[str, ...] = (),
    grace: float = GRACE,
    examples: Sequence[PageExample] = (),
    **limits: Any,
) -> Iterator[Paged]:
    """`offers`: as `offered`. `grace`: as of `Page`."""
    model = GuardedModel(engine, NAME, Limits(**limits))
    given = {"usual": engine.defense.name, "defenses": (), "policies": (), "compares": False} | (offers or {})
    page = Page(offered(model, **given) if offers else Offers(), examples, grace)
    with listening(create_app(model, Keys(keys) if keys else None, page=page)) as address:
        try:
            yield Paged(model, address, page)
        finally:
            page.stopping.tell()


def uploaded() -> list[Path]:
    """Files in the folder of the page that runs."""
    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]


def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Visitor:
    """One page in a browser."""

    def __init__(self, served: Served, folder: Path, **options: Any) -> None:
        from gradio_client import Client

        self.folder = folder
        self.client = Client(f"{served.address}/ui", verbose=False, download_files=False, **options)

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def ask(
        self,
        text: str = "",
        *images: Image | Path,
        goes_on: bool = False,
        defense: str = USUAL,
        policy: str = USUAL,
        compares: bool = False,
    ) -> Told:
        """`goes_on`: in the same conversation."""
        from gradio_client import handle_file

        if not goes_on:
            self.client.reset_session()
        files = [handle_file(str(self._file(n, image))) for n, image in enumerate(images)]
        said = self.client.predict({"text": text, "files": files}, defense, policy, compares, api_name="/chat")
        shown = [each for each in said if isinstance(each, dict)]
        words = [each for each in said if isinstance(each, str)]
        titles = tuple(html.unescape(re.sub("<[^>]*>", "", each["metadata"]["title"])) for each in shown)
        return Told(titles, tuple(each["content"] for each in shown), "\n".join(words))

    def _file(self, number: int, image: Image | Path) -> Path:
        if isinstance(image, Path):
            return image
        path = self.folder / f"{number}.png"
        image.save(path)
        return path
