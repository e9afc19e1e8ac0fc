"""The acting half of a defense: per category and level `allow`, `hint` or `refuse`. A YAML file; no retraining.

    levels:                       # what to do at each level
      careful: hint
      may_refuse: hint
      must_refuse: refuse
    categories:                   # and otherwise for one category
      privacy: {careful: allow}
    thresholds:                   # act on a category only from this probability on
      misleading: 0.8
    hint: correction              # SafeCLIP's fixed instruction; verdict, where none is given: of level and category
    place: before                 # the hint stands before the question, as SafeCLIP has it; after, where none is given
    calibration: …                # how to read a detector (`safevlm.defenses.calibration`); made by a command

A verdict of level `safe` or category `clean` is always let through untouched (SafeVLM's rule, methods §1.6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from safevlm.defenses import prompts
from safevlm.defenses.calibration import Calibration, check_calibration
from safevlm.files import checked, read_yaml
from safevlm.taxonomy import SAFE, Taxonomy
from safevlm.types import Reply, Request, Verdict

Action = Literal["allow", "hint", "refuse"]
Place = Literal["after", "before"]
HintText = Literal["verdict", "correction"]


@dataclass(frozen=True)
class Policy:
    taxonomy: Taxonomy
    levels: Mapping[str, Action] = field(default_factory=dict)
    """Levels that are not named get a hint, as SafeVLM's mixer does."""
    categories: Mapping[str, Mapping[str, Action]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    hint: HintText = "verdict"
    """What a hint says: the level's stance with the category's topic, or `prompts.CORRECTION`, whatever was seen."""
    place: Place = "after"
    """Of the hint beside the question. With earlier turns it is the last question that counts."""
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    """By name of the detector; one that is not named is taken at its word."""

    def calibrated(self, verdict: Verdict) -> Verdict:
        """A detector's verdict as it is to be read; the same object where nothing was calibrated."""
        calibration = self.calibration.get(verdict.source)
        return verdict if calibration is None else calibration.read(verdict, self.taxonomy)

    def action(self, verdict: Verdict) -> Action:
        """What to do about a verdict."""
        if verdict.is_clean:
            return "allow"
        likely = verdict.category_probabilities.get(verdict.category, 1.0)
        if likely < self.thresholds.get(verdict.category, 0.0):
            return "allow"
        by_level = self.categories.get(verdict.category, {})
        return by_level.get(verdict.level) or self.levels.get(verdict.level, "hint")

    def strictness(self, verdict: Verdict) -> int:
        """What comes of a verdict, as a number to compare by: allow, hint, refuse."""
        return get_args(Action).index(self.action(verdict))

    def act(self, request: Request, verdict: Verdict, name: str) -> Request | Reply:
        """The request as it is, the request with a hint beside the question, or a refusal in the model's place."""
        action = self.action(verdict)
        if action == "allow":
            return request
        if action == "refuse":
            return Reply(text=self.refusal(verdict), request=request, verdict=verdict, refused_by=name)
        by_verdict = prompts.hint(self.taxonomy, verdict.level, verdict.category) + self._which(verdict)
        hint = prompts.CORRECTION if self.hint == "correction" else by_verdict
        if request.text.startswith(hint) or request.text.endswith(hint):  # another member of a stack has said it
            return request
        lines = [hint, request.text] if self.place == "before" else [request.text, hint]
        return dataclasses.replace(request, text="\n".join(lines))

    def refusal(self, verdict: Verdict) -> str:
        """What is said in the model's place."""
        return prompts.refusal(self.taxonomy, verdict.category) + self._which(verdict)

    def _which(self, verdict: Verdict) -> str:
        """Which of several images alone are acted on, those of the verdict's category where there are any; empty: none,
        or there are not several."""
        acted_on = {number: own for number, own in enumerate(verdict.images, 1) if self.action(own) != "allow"}
        alike = [number for number, own in acted_on.items() if own.category == verdict.category]
        return prompts.which(alike or list(acted_on), len(verdict.images))


def read_policy(
    path: str | Path | Mapping[str, Any] | None, taxonomy: Taxonomy, default: Mapping[str, Any] | None = None
) -> Policy:
    """A policy file or its table, checked against the taxonomy; None: the checkpoint's own (`default`), or SafeVLM's
    rule. ValueError names the file and the key."""
    if path is None:
        return policy_from(default or {}, taxonomy, "config.json: policy")
    if isinstance(path, Mapping):
        return policy_from(dict(path), taxonomy, "policy")
    return _policy(read_yaml(path, PolicyFile), taxonomy, path)


def policy_from(table: Any, taxonomy: Taxonomy, where: str | Path) -> Policy:
    """A policy's table, checked against the taxonomy. ValueError names `where` and the key."""
    return Policy(taxonomy) if table == {} else _policy(checked(PolicyFile, table, str(where)), taxonomy, where)


@dataclass(frozen=True)
class PolicyFile:
    """The shape of a policy's table, before its names are held against a taxonomy."""

    levels: Mapping[str, Action] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, Action]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    hint: HintText = "verdict"
    place: Place = "after"
    calibration: Mapping[str, Calibration] = field(default_factory=dict)


def _policy(told: PolicyFile, taxonomy: Taxonomy, where: str | Path) -> Policy:
    risky_levels = [name for name in taxonomy.level_names if name != SAFE]
    _known(f"{where}: levels", "level", told.levels, risky_levels)
    _known(f"{where}: categories", "category", told.categories, taxonomy.category_names)
    _known(f"{where}: thresholds", "category", told.thresholds, taxonomy.category_names)
    for category, levels in told.categories.items():
        _known(f"{where}: categories.{category}", "level", levels, risky_levels)
    for category, threshold in told.thresholds.items():
        if not 0 <= threshold <= 1:
            raise ValueError(f"{where}: thresholds.{category}: {threshold!r} is not a probability")
    for name, calibration in told.calibration.items():
        check_calibration(calibration, taxonomy, f"{where}: calibration.{name}")
    return Policy(taxonomy, **vars(told))


def _known(where: str, what: str, names: Iterable[str], choices: Sequence[str]) -> None:
    for name in names:
        if name not in choices:
            raise ValueError(f"{where}: unknown {what} {name!r}; one of {list(choices)}")
