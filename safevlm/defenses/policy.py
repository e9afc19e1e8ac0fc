"""The acting half of a defense: per category and level `allow`, `hint` or `refuse`. A YAML file; no retraining.

    levels:                       # what to do at each level
      careful: hint
      may_refuse: hint
      must_refuse: refuse
    categories:                   # and otherwise for one category
      privacy: {careful: allow}
    thresholds:                   # act on a category only from this probability on
      misleading: 0.8
    place: before                 # the hint stands before the question, as SafeCLIP has it; after, where none is given
    calibration: …                # how to read a detector (`safevlm.defenses.calibration`); made by a command

A verdict of level `safe` or category `clean` is always let through untouched (SafeVLM's rule, methods §1.6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from safevlm.defenses import prompts
from safevlm.defenses.calibration import Calibration, calibrations_from
from safevlm.taxonomy import SAFE, Taxonomy
from safevlm.types import Reply, Request, Verdict

Action = Literal["allow", "hint", "refuse"]
Place = Literal["after", "before"]
ACTIONS, PLACES = get_args(Action), get_args(Place)
KEYS = ("levels", "categories", "thresholds", "calibration", "place")


@dataclass(frozen=True)
class Policy:
    taxonomy: Taxonomy
    levels: Mapping[str, Action] = field(default_factory=dict)
    """Levels that are not named get a hint, as SafeVLM's mixer does."""
    categories: Mapping[str, Mapping[str, Action]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
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

    def act(self, request: Request, verdict: Verdict, name: str) -> Request | Reply:
        """The request as it is, the request with a hint beside the question, or a refusal in the model's place."""
        action = self.action(verdict)
        if action == "allow":
            return request
        if action == "refuse":
            text = prompts.refusal(self.taxonomy, verdict.category)
            return Reply(text=text, request=request, verdict=verdict, refused_by=name)
        hint = prompts.hint(self.taxonomy, verdict.level, verdict.category)
        if request.text.startswith(hint) or request.text.endswith(hint):  # another member of a stack has said it
            return request
        lines = [hint, request.text] if self.place == "before" else [request.text, hint]
        return dataclasses.replace(request, text="\n".join(lines))


def read_policy(
    path: str | Path | Mapping[str, Any] | None, taxonomy: Taxonomy, default: Mapping[str, Any] | None = None
) -> Policy:
    """A policy file or its table, checked against the taxonomy; None: the checkpoint's own (`default`), or SafeVLM's
    rule. ValueError names the file and the key."""
    if path is None:
        return policy_from(default or {}, taxonomy, "config.json: policy")
    if isinstance(path, Mapping):
        return policy_from(dict(path), taxonomy, "policy")
    try:
        table = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: malformed YAML: {error}") from error
    return policy_from(table, taxonomy, path)


def policy_from(table: Any, taxonomy: Taxonomy, where: str | Path) -> Policy:
    """A policy's table, checked against the taxonomy. ValueError names `where` and the key."""
    _check(where, table, taxonomy)
    return Policy(
        taxonomy,
        levels=table.get("levels", {}),
        categories=table.get("categories", {}),
        thresholds=table.get("thresholds", {}),
        place=table.get("place", "after"),
        calibration=calibrations_from(table.get("calibration", {}), taxonomy, where),
    )


def _check(path: str | Path, table: Any, taxonomy: Taxonomy) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: a policy is a table of {', '.join(KEYS)}")
    _known(path, "key", table, KEYS)
    _known(path, "place", [table.get("place", "after")], PLACES)
    table = {key: value for key, value in table.items() if key != "place"}
    by_category = table.get("categories", {})
    rows = by_category.items() if isinstance(by_category, dict) else ()
    for what, value in (*table.items(), *((f"categories.{name}", row) for name, row in rows)):
        if not isinstance(value, dict):
            raise ValueError(f"{path}: {what}: {value!r} is not a table")
    level_tables = [table.get("levels", {}), *by_category.values()]
    _known(path, "category", table.get("categories", {}), taxonomy.category_names)
    _known(path, "category", table.get("thresholds", {}), taxonomy.category_names)
    for levels in level_tables:
        _known(path, "level", levels, [name for name in taxonomy.level_names if name != SAFE])
        _known(path, "action", levels.values(), ACTIONS)
    for category, threshold in table.get("thresholds", {}).items():
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ValueError(f"{path}: thresholds.{category}: {threshold!r} is not a probability")


def _known(path: str | Path, what: str, names: Any, choices: Any) -> None:
    for name in names:
        if name not in choices:
            raise ValueError(f"{path}: unknown {what} {name!r}; one of {list(choices)}")
