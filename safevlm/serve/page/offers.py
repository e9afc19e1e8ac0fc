"""What a visitor may choose: only what the deployer named, by its name in a list. Nobody types a name or a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safevlm.serve.choice import behind
from safevlm.serve.deployment import Treatment, treatment
from safevlm.serve.errors import ApiError
from safevlm.serve.guarded import GuardedModel

USUAL = "as the server does"
STRICT = "refuse whatever is flagged"
BARE = "none"
"""The bare model's name as a defense."""


@dataclass(frozen=True)
class PageChoice:
    """How one question is treated."""

    treatment: Treatment | None = None
    """None: as the deployment treats whoever asks."""
    blocks: bool = False
    """Whatever is flagged is refused."""


@dataclass(frozen=True)
class Offers:
    """Lists to choose from, and what stands behind them."""

    defenses: Sequence[str] = (USUAL,)
    policies: Sequence[str] = (USUAL, STRICT)
    """The usual, stricter, and by the names of their files."""
    treatments: Mapping[tuple[str, str], Treatment] = field(default_factory=dict)
    """By defense and policy."""
    bare: Treatment | None = None
    """None: nobody is shown the bare model."""

    def choice(self, defense: str, policy: str) -> PageChoice:
        """ApiError: what is not offered."""
        if defense not in self.defenses or policy not in self.policies:
            raise ApiError(400, "this server does not offer that choice", code="not_available")
        blocks, policy = policy == STRICT, USUAL if policy == STRICT else policy
        if (defense, policy) == (USUAL, USUAL):
            return PageChoice(blocks=blocks)
        try:
            return PageChoice(self.treatments[defense, policy], blocks)
        except KeyError as error:
            raise ApiError(400, "this defense takes no policy; choose another", code="not_available") from error


def offered(
    model: GuardedModel, usual: str, defenses: Sequence[str], policies: Sequence[Path], compares: bool
) -> Offers:
    """`usual`: the server's own defense. ValueError, OSError: a defense or policy that cannot be used."""
    stems = {path.stem: path for path in policies}
    if len(stems) < len(policies):
        raise ValueError("two of the page's policies have the same name; rename one of the files")
    names = {USUAL: usual, **{name: name for name in defenses}}
    treatments = {}
    for shown, name in names.items():
        for policy, path in ({} if name == BARE else stems).items():
            treatments[shown, policy] = _treatment(model, name, path)
        if shown != USUAL:
            treatments[shown, USUAL] = _treatment(model, name, None)
    bare = _treatment(model, BARE, None) if compares else None
    return Offers(tuple(names), (USUAL, STRICT, *stems), treatments, bare)


def _treatment(model: GuardedModel, defense: str, policy: Path | None) -> Treatment:
    engine = behind(model.engine, defense, policy)
    version = "page:" + ":".join([defense, *([policy.stem] if policy else [])])
    return treatment(engine, model.metrics.guard_seconds.observe, version)
