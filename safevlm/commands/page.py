"""The flags of the chat page of `safevlm serve`, and what it begins with."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.usage import UsageError

if TYPE_CHECKING:
    from safevlm.engine import Engine
    from safevlm.serve.guarded import GuardedModel
    from safevlm.serve.page.page import Page, PageExample

SEED = 3
"""Of the images that the page begins with."""
NEEDS_UI = ("ui_defense", "ui_policy", "ui_compare")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ui", action="store_true", help="a chat page for people at /ui, beside the API")
    parser.add_argument(
        "--ui-defense",
        action="append",
        default=[],
        metavar="NAME",
        help="visitors of the page may choose this defense too, laxer or stricter; may be repeated",
    )
    parser.add_argument(
        "--ui-policy",
        action="append",
        default=[],
        metavar="FILE",
        help="visitors of the page may choose this policy too, by the file's name; may be repeated",
    )
    parser.add_argument(
        "--ui-compare", action="store_true", help="visitors of the page may see the unguarded model's answer beside"
    )


def check_flags(options: argparse.Namespace) -> None:
    """UsageError: flags of a page that is not there, or cannot be. ImportError: gradio is missing."""
    for name in NEEDS_UI:
        if getattr(options, name) and not options.ui:
            raise UsageError(f"--{name.replace('_', '-')} is about the page; ask for it with --ui")
    if options.ui and options.upstream:
        raise UsageError("--ui shows the model in this process, and with --upstream there is none; leave one out")
    if not options.ui:
        return
    try:
        import gradio  # noqa: F401 - is told here, before a model is loaded
    except ImportError as error:
        raise ImportError(f"--ui: {error.name} is missing; pip install 'safevlm[serve,ui]'") from error


def announce(options: argparse.Namespace) -> None:
    """Says where the page is."""
    from safevlm.serve.page.paths import ROOT

    if options.ui:
        print(f"the page: http://{options.host}:{options.port}{ROOT}", flush=True)


def page(model: GuardedModel, options: argparse.Namespace) -> Page | None:
    """The page, where it is asked for."""
    if not options.ui:
        return None
    from safevlm.serve.page.offers import offered
    from safevlm.serve.page.page import Page

    policies = [Path(name) for name in options.ui_policy]
    offers = offered(model, options.defense, options.ui_defense, policies, options.ui_compare)
    return Page(offers, miniature_examples(model.engine))


def miniature_examples(engine: Engine) -> list[PageExample]:
    """Questions with images of the miniature, for a model that knows its words."""
    from safevlm.miniature.drawing import draw
    from safevlm.miniature.words import DESCRIBE, USE_IMAGE
    from safevlm.miniature.world import THINGS, Kind, sample_scene
    from safevlm.serve.page.page import PageExample

    known = engine.processor.tokenizer.get_vocab()
    if not all({thing.name, f"▁{thing.name}", f"Ġ{thing.name}"} & known.keys() for thing in THINGS):
        return []
    rng = random.Random(SEED)
    kinds: list[tuple[str, Kind]] = [(DESCRIBE[0], "benign"), (USE_IMAGE[0], "benign"), (USE_IMAGE[0], "harmful")]
    return [PageExample(text, draw(sample_scene(rng, kind))) for text, kind in kinds]
