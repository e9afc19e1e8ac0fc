"""The page as one thing that a server is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from PIL.Image import Image

from safevlm.serve.access import KeyCheck
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.page import paths
from safevlm.serve.page.asking import Asker
from safevlm.serve.page.door import PageDoor
from safevlm.serve.page.offers import Offers
from safevlm.serve.page.sessions import Sessions
from safevlm.serve.page.stopping import Stopping
from safevlm.serve.page.uploads import GRACE, Uploads

EVERY = 1.0
"""Seconds: how often it is looked for images that nobody needs."""


@dataclass(frozen=True)
class PageExample:
    """A question to begin with."""

    text: str
    image: Image


@dataclass(frozen=True)
class Page:
    """What the page shows and offers."""

    offers: Offers = field(default_factory=Offers)
    examples: Sequence[PageExample] = ()
    grace: float = GRACE
    """Seconds after which the images of a page that was closed go."""
    stopping: Stopping = field(default_factory=Stopping)
    """Is told when the server is to end."""

    def covers(self, path: str) -> bool:
        return paths.covers(path)

    def add_to(self, app: FastAPI, model: GuardedModel, keys: KeyCheck) -> None:
        """Beside the API of an app; its folder goes away with the app. ImportError: gradio is missing."""
        from safevlm.serve.page.blocks import mount_page

        uploads, sessions = Uploads(model.limits.held_bytes, self.grace), Sessions(keys)
        shown = [
            (example.text, uploads.add_example(f"example-{n}.png", example.image))
            for n, example in enumerate(self.examples, 1)
        ]
        mount_page(app, Asker(model, uploads, self.offers), sessions, shown)
        app.add_middleware(PageDoor, sessions=sessions, uploads=uploads, stopping=self.stopping)
        router: Any = app.router
        inner = router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[object]:
            sweeping = asyncio.create_task(_sweep(uploads))
            try:
                async with inner(app) as state:
                    yield state
            finally:
                sweeping.cancel()
                uploads.close()

        router.lifespan_context = lifespan


async def _sweep(uploads: Uploads) -> None:
    while True:
        await asyncio.sleep(EVERY)
        uploads.sweep()
