"""Defenses of a user's own code: what `package.module:Attribute` may be, and what is said when it may not."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import safevlm
from safevlm.defenses import Defense, DefenseContext, DefenseRow, Policy, Stack, build, members
from safevlm.defenses.base import ImageFeatures
from safevlm.defenses.mixer import Mixer
from safevlm.taxonomy import DEFAULT
from safevlm.types import Reply, Request, Verdict
from tests.engine import engines

CONTEXT = DefenseContext(Policy(DEFAULT), has_head=True)


class Shout(Defense):
    """Asks louder."""

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return Request(request.text.upper(), request.images, request.id)


class Suspicious:
    """A detector: no hook but `detect`, and no base class."""

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        return Verdict("illegal", DEFAULT.category_names[1]) if features.images else Verdict()


class Censor:
    """Two hooks and no base class."""

    name = "censor"

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return request

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        return Reply("censored", request)


class FromFile(Defense):
    name = "from-file"

    @classmethod
    def from_context(cls, context: DefenseContext) -> FromFile:
        made = cls()
        made.file = context.file
        return made

    file: Path | None = None


class Needy(Defense):
    def __init__(self, model: object) -> None:
        self.model = model

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return request


class Useless:
    pass


def from_function(context: DefenseContext) -> Defense:
    return Shout()


@dataclass(frozen=True)
class Frozen(Defense):
    """A defense that cannot be changed once it is made."""

    word: str = "PLEASE"

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return Request(f"{self.word} {request.text}", request.images, request.id)


class Numbered(Shout):
    name = 7  # type: ignore[assignment]  # the mistake that is looked for


class Unnamed(Censor):
    name = " "


def breaks(context: DefenseContext) -> Defense:
    raise ZeroDivisionError("no lamp")


def leaves(context: DefenseContext) -> Defense:
    raise SystemExit("bye")


def says_what_is_wrong(context: DefenseContext) -> Defense:
    raise ValueError("needs a lamp")


def returns_nothing(context: DefenseContext) -> None:
    return None


ROW = DefenseRow("row", lambda context: Shout(), works_on_served_model=True)
NUMBER = 7


@pytest.fixture(autouse=True)
def own_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file as the user's module `own_guards`."""
    module = ModuleType("own_guards")
    module.__dict__.update(globals())
    monkeypatch.setitem(sys.modules, "own_guards", module)


def test_a_frozen_defense_is_asked() -> None:
    reply = engines.engine("own_guards:Frozen").reply(Request("Hello there?"), engines.SHORT)
    assert "PLEASE Hello there?" in reply.prompt
    assert build("own_guards:Frozen", CONTEXT).name == "own_guards:Frozen"


@pytest.mark.parametrize("given", [Shout, Censor(), None])
def test_load_takes_a_name_or_a_defense(given: object) -> None:
    with pytest.raises(TypeError, match="neither a name nor a Defense"):
        safevlm.load("nowhere", defense=given)  # type: ignore[arg-type]  # the mistake that is looked for


@pytest.mark.parametrize("attribute", ["Shout", "from_function", "ROW"])
def test_an_own_defense_rewrites_the_request(attribute: str) -> None:
    name = f"own_guards:{attribute}"
    reply = engines.engine(name).reply(Request("Hello there?"), engines.SHORT)
    assert "HELLO THERE?" in reply.prompt
    assert build(name, CONTEXT).name == name


def test_an_own_defense_joins_a_stack() -> None:
    for name in ("safety-head+own_guards:Shout", "own_guards:Shout+safety-head"):
        stack = build(name, CONTEXT)
        assert isinstance(stack, Stack)
        assert stack.name == name


def test_a_file_is_given_to_who_takes_one() -> None:
    one, other = members("own_guards:FromFile=a+b/c.bin+own_guards:Shout")
    assert (one.file, other.file) == (Path("a+b/c.bin"), None)
    made = build("own_guards:FromFile=x.bin", CONTEXT)
    assert isinstance(made, FromFile)
    assert made.file == Path("x.bin")
    with pytest.raises(ValueError, match="own_guards:Shout reads no file"):
        members("own_guards:Shout=x.bin")


def test_a_detector_is_put_together_with_the_policy() -> None:
    name = "own_guards:Suspicious"
    assert isinstance(build(name, CONTEXT), Mixer)
    reply = engines.engine(name).reply(Request("What is it?", (engines.image(),)), engines.SHORT)
    assert reply.verdict.level == "illegal"
    assert reply.verdict.source == name
    assert reply.refused_by == name or reply.prompt != engines.engine("none").reply(reply.request, engines.SHORT).prompt


def test_hooks_without_the_base_class_are_called() -> None:
    engine = engines.engine("own_guards:Censor")
    assert engine.reply(Request("Hello?"), engines.SHORT).text == "censored"
    assert engine.defense.reviews


def test_a_broken_own_detector_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> Verdict:
        raise RuntimeError("no lamp")

    monkeypatch.setattr(Suspicious, "detect", fail)
    reply = engines.engine("own_guards:Suspicious").reply(Request("What?", (engines.image(),)), engines.SHORT)
    assert reply.refused_by
    assert "no lamp" in reply.verdict.error


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Needy", r"class Needy wants arguments \(model\)"),
        ("Useless", "class Useless has none of the hooks detect, rewrite, transform, review"),
        ("NUMBER", "an object of int is no defense"),
        ("returns_nothing", "an object of NoneType has none of the hooks"),
        ("breaks", "could not be built: ZeroDivisionError: no lamp"),
        ("leaves", "could not be built: SystemExit: bye"),
        ("says_what_is_wrong", "needs a lamp"),
        ("Numbered", "its `name` must be a text that is not empty, not 7"),
        ("Unnamed", "its `name` must be a text that is not empty, not ' '"),
        ("Missing", "own_guards has no Missing"),
    ],
)
def test_what_an_own_defense_lacks_is_said(attribute: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"own_guards:{attribute}.*{message}"):
        build(f"own_guards:{attribute}", CONTEXT)


def test_what_works_without_the_weights_is_known_from_the_hooks() -> None:
    facts = {
        name: members(f"own_guards:{name}")[0].row.works_on_served_model for name in ("Shout", "Suspicious", "ROW")
    }
    assert facts == {"Shout": True, "Suspicious": False, "ROW": True}
