"""Prompts as they are sent, family by family: read the files beside this one.

`python -m tests.backbones.test_prompts` writes them again; a person reads the difference.
"""

from __future__ import annotations

from pathlib import Path

from safevlm import defenses
from safevlm.data import chat
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.policy import read_policy
from safevlm.taxonomy import DEFAULT
from safevlm.types import Request, Verdict
from tests.backbones import families
from tests.backbones.templates import SHAPES

HERE = Path(__file__).parent / "prompts"
RISK = Verdict(level="careful", category="illegal", source="oracle")
REQUESTS = {
    "a question about an image": Request("What is it?", images=("",)),
    "two images": Request("Which is larger?", images=("", "")),
    "words alone": Request("Hello!"),
    "a system turn, a history, an image in the first turn": Request(
        "And now?",
        images=("",),
        system="Be brief.",
        history=(("What is it?", "A cup."),),
        images_per_turn=(1, 0),
    ),
}


def rendered(family: str) -> str:
    """All prompts of a family, and one with a hint."""
    _, processor = families.stock(family)
    context = DefenseContext(read_policy(None, DEFAULT, None), truths={"risky": RISK})
    hinted = defenses.build("oracle", context).rewrite(Request("What is it?", images=("",), id="risky"), RISK)
    assert isinstance(hinted, Request)
    asked = {**REQUESTS, "with the mixer's hint": hinted}
    return "".join(f"── {title}\n{chat.prompt_text(processor, request)}\n" for title, request in asked.items())


@families.each(SHAPES)
def test_prompts_are_those_that_were_read(family: str) -> None:
    assert rendered(family) == (HERE / f"{family}.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name in SHAPES:
        (HERE / f"{name}.txt").write_text(rendered(name), encoding="utf-8")
