"""The chat page in a real Chromium, in front of the miniature: as people use it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safevlm.commands.page import miniature_examples
from safevlm.engine import Engine
from safevlm.miniature.drawing import draw
from safevlm.miniature.world import Kind, sample_scene
from tests.serve.paging import NEEDS_GRADIO, Paged, paged, until, uploaded

pytestmark = [pytest.mark.slow, NEEDS_GRADIO]
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

MODEL = Path(__file__).parents[2] / "checkpoints" / "miniature"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
PATIENCE = 120_000
"""Milliseconds for an answer, on a machine that does other things too."""


@pytest.fixture(scope="module")
def served() -> Iterator[Paged]:
    engine = Engine.load(MODEL, defense="safe-clip")
    examples = miniature_examples(engine)
    with paged(engine, offers={"compares": True}, grace=1.0, examples=examples) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def images(tmp_path: Path) -> dict[str, str]:
    """Files of scenes by their kind."""
    kinds: tuple[Kind, ...] = ("benign", "harmful")
    rng = random.Random(1)
    for kind in kinds:
        draw(sample_scene(rng, kind)).save(tmp_path / f"{kind}.png")
    return {kind: str(tmp_path / f"{kind}.png") for kind in kinds}


class Opened:
    """The page, and what it asked other machines for."""

    def __init__(self, browser: Any, served: Paged, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self._watch(request.url, served.address))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("response", lambda answer: answer.status >= 400 and self.wrong.append(answer.url))
        self.page.goto(f"{served.address}/ui/")
        self.question = self.page.get_by_role("textbox", name="Your question")
        self.question.wait_for()

    def _watch(self, url: str, here: str) -> None:
        if not url.startswith((here, "data:", "blob:")):
            self.wrong.append(url)

    def ask(self, text: str, *images: str) -> list[str]:
        """What the page says then: bubbles, and last the model's words."""
        before = self.page.locator(".bot-row").count()
        if images:
            self.page.set_input_files("#question input[type=file]", list(images))
            self.page.wait_for_function(
                "most => document.querySelectorAll('#question .thumbnail-image').length === most", arg=len(images)
            )
        self.question.fill(text)
        self.question.press("Enter")
        return self.answer(before)

    def answer(self, before: int) -> list[str]:
        self.page.wait_for_function(
            "before => document.querySelectorAll('.bot-row').length > before && !document.querySelector("
            "'#conversation .loading-spinner, #question [data-testid=stop-button], #question textarea:disabled')",
            arg=before,
        )
        return list(self.page.locator(".bot-row").last.locator(".guard, .message-content").all_inner_texts())


def test_a_conversation_with_images_shows_answers_and_a_verdict_beside_each(
    served: Paged, browser: Any, images: dict[str, str]
) -> None:
    opened = Opened(browser, served, 1300)
    benign = opened.ask("What is in the picture?", images["benign"])
    assert "safe" in benign[0] and "answered" in benign[0]
    assert benign[-1]
    risky = opened.ask("How do I use the things in the picture?", images["harmful"])  # a second image
    assert "safe" not in risky[0]
    assert risky[1].startswith("All 2 images")
    assert not risky[1].endswith("answered")
    both = opened.ask("What is in the picture?", images["benign"], images["harmful"])
    assert [told.split(":")[0] for told in both[:3]] == ["Image 1", "Image 2", "All 4 images"]
    assert "safe" in both[0] and "safe" not in both[1]
    assert opened.ask("And what else?")[0].startswith("All 4 images")
    assert opened.page.locator(".guard > img").evaluate_all("all => all.every(each => each.naturalWidth > 0)")
    assert uploaded()
    assert opened.wrong == []
    opened.page.close()
    until(lambda: all(path.name.startswith("example-") for path in uploaded()))


def test_a_telephone_a_keyboard_and_a_screen_reader_can_use_the_page(served: Paged, browser: Any) -> None:
    opened = Opened(browser, served, 400)
    page = opened.page
    page.get_by_role("button", name="How do I use the things in the picture?").last.press("Enter")  # an example
    page.locator("#question .thumbnail-image").wait_for()
    opened.question.focus()
    page.keyboard.press("Enter")
    told = opened.answer(0)
    assert told[-1]
    title = page.locator(".thought-group > .title").first
    assert title.get_attribute("aria-expanded") == "false"
    title.focus()
    page.keyboard.press("Space")
    page.get_by_text("verdict: level").wait_for()
    assert title.get_attribute("aria-expanded") == "true"
    assert title.evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    log = page.get_by_role("log", name="Conversation")
    assert (log.get_attribute("aria-live"), log.get_attribute("aria-busy")) == ("polite", "false")
    assert page.evaluate("document.documentElement.lang") == "en"
    unnamed = page.locator("button:visible:not([tabindex='-1'])").evaluate_all(
        "all => all.filter(each => !(each.ariaLabel || each.innerText.trim())).map(each => each.outerHTML)"
    )
    assert unnamed == []
    assert opened.wrong == []
    page.locator("#question [data-testid=upload-button]").focus()
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText.trim()"))
    assert [words.split(":")[0] for words in reached] == ["Your question", "Send", "Guard"]
    page.close()
