"""`safevlm analyze calibration`: what a detector's probabilities are worth, and a threshold that keeps a promise.

One random half of the images gives the temperatures; the other half judges them and gives the thresholds, so that
neither looks at its own homework. What comes of it is a policy's `calibration` (`safevlm.defenses.calibration`), in
`policy.yaml` and, where asked for, in the checkpoint's config.json. The trap: the promise is about images like the
clean ones of the data; a calibration on cartoons says nothing about photographs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm.analysis import calibration_figures, detection, reliability, summary, thresholds
from safevlm.analysis.labelled_images import SetsOptions, read_sets
from safevlm.analysis.thresholds import Promise, Risks, Thresholds
from safevlm.analysis.verdicts import READ_OUTS, DetectorVerdicts, judge, union
from safevlm.data.atomic_write import write_text
from safevlm.defenses.policy import Policy, policy_from
from safevlm.files import read_json, read_yaml
from safevlm.intervals import Floats, Interval, share
from safevlm.model.export import SIDECAR
from safevlm.model.loading import Loaded
from safevlm.taxonomy import CLEAN, Taxonomy

POLICY_FILE = "policy.yaml"
TRIAL_SHARE = 0.25
"""Share of the images that a trial calibrates on; the others are fresh."""
FEWEST = 10
"""Clean images, and risky ones, below which nothing is calibrated."""
ON_AVERAGE, WITH_CONFIDENCE, RAISED = "on average", "with confidence", "with confidence, raised"


@dataclass(frozen=True)
class CalibrationOptions(SetsOptions):
    test: tuple[str, ...] = ()
    target_fpr: float = 0.05
    confidence: float = 0.95
    per_category: bool = False
    spend_all: bool = False
    write: bool = False
    trials: int = 0
    defense: str = "safety-head"
    policy: str | None = None


@dataclass(frozen=True)
class Scores:
    """Raw probabilities and truths of a set, as arrays."""

    probabilities: dict[str, Floats]
    """(n, names) by read-out; the level's is missing where the detector gives none."""
    truth: dict[str, NDArray[np.int64]]
    """(n,) ids by read-out; -1 unlabelled."""
    risky: NDArray[np.bool_]
    clean: int
    """Column of the clean category."""

    def at(self, rows: NDArray[np.intp]) -> Scores:
        return Scores(
            {name: table[rows] for name, table in self.probabilities.items()},
            {name: ids[rows] for name, ids in self.truth.items()},
            self.risky[rows],
            self.clean,
        )

    def labelled(self, read_out: str) -> tuple[Floats, NDArray[np.int64]]:
        """Probabilities and truths of the images that have this label."""
        rows = self.truth[read_out] >= 0
        return self.probabilities[read_out][rows], self.truth[read_out][rows]

    def temperatures(self) -> dict[str, float]:
        return {name: reliability.fit_temperature(*self.labelled(name)) for name in self.probabilities}

    def risks(self, temperature: float) -> Risks:
        risky = np.delete(reliability.tempered(self.probabilities["category"], temperature), self.clean, axis=1)
        return Risks(risky.sum(1), risky.argmax(1), self.risky)


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found, and the half of the images that it judged itself on."""

    temperatures: dict[str, float]
    thresholds: dict[str, Thresholds]
    """By rule."""
    held_out: NDArray[np.intp]
    risks: Risks
    """Of the held-out half."""


def run(options: CalibrationOptions) -> dict[str, Any]:
    """Verdicts → temperatures, thresholds, what they do on fresh images, policy, figures, `summary.json`."""
    promise = Promise(options.target_fpr, options.confidence)
    loaded = detection.load(options.model, options.device, options.base)
    _check_writable(loaded, options)
    taxonomy = loaded.safe_llava.config.taxonomy
    table = _policy_table(options, loaded)
    sets = read_sets(options.data, taxonomy, options.images)
    tests = read_sets(options.test, taxonomy, options.images) if options.test else []
    summary.refuse_other("calibration", options.out, loaded, [*sets, *tests], options.seed)
    guard = detection.detector(loaded, options.defense, Policy(taxonomy), [*sets, *tests])  # raw: no calibration on top
    judged = judge(loaded, guard, [*sets, *tests], options.batch_size)
    data = union(judged[: len(sets)])
    scores = scores_of(data, taxonomy, guard.name)
    names = risky_names(taxonomy)
    found = calibrate(scores, promise, names, options)
    resampled = trials(scores, promise, names, options) if options.trials else None
    chosen = found.thresholds[WITH_CONFIDENCE if options.spend_all else RAISED]
    note = _note(promise, int((~found.risks.risky).sum()))
    entry = {"temperatures": found.temperatures, "risk": chosen, "note": note}
    table["calibration"] = {**table.get("calibration", {}), guard.name: entry}
    policy = policy_from(table, taxonomy, POLICY_FILE)
    held_out = dataclasses.replace(data.at(found.held_out), name="held-out half")
    errors, curves = calibration_errors(scores.at(found.held_out), found.temperatures, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    write_policy(options.out / POLICY_FILE, table)
    files = [
        *calibration_figures.reliability_curves(options.out, curves),
        *calibration_figures.operating_points(options.out, found.risks, found.thresholds, names, promise),
        *(calibration_figures.trials(options.out, resampled, promise) if resampled else []),
    ]
    result = {
        "detector": guard.name,
        "promise": dataclasses.asdict(promise) | {"per_category": options.per_category, "note": note},
        "n": {"all": len(data), "held_out": len(held_out), "held_out_clean": int((~found.risks.risky).sum())},
        "temperatures": found.temperatures,
        "calibration": errors,
        "thresholds": found.thresholds,
        "chosen": chosen,
        "measured": {one.name: _measured(one, policy) for one in [held_out, *judged[len(sets) :]]},
        "trials": resampled,
        "files": [*files, POLICY_FILE],
    }
    summary.write("calibration", options.out, loaded, [*sets, *tests], options.seed, result)
    if options.write:
        write_into_checkpoint(_home_of_policy(loaded), table)
    _print(result, loaded, options)
    return result


def calibrate(scores: Scores, promise: Promise, names: Sequence[str], options: CalibrationOptions) -> Calibrated:
    """Temperatures from one half of the images, thresholds from the other."""
    first, second = split(scores.risky, 0.5, np.random.default_rng(options.seed))
    temperatures = scores.at(first).temperatures()
    risks = scores.at(second).risks(temperatures["category"])
    return Calibrated(temperatures, _thresholds(risks, promise, names, options), second, risks)


def risky_names(taxonomy: Taxonomy) -> list[str]:
    return [name for name in taxonomy.category_names if name != CLEAN]


def rules(promise: Promise) -> dict[str, tuple[Promise, bool]]:
    """The thresholds that are compared: which promise, and whether all of it is spent."""
    return {
        ON_AVERAGE: (Promise(promise.target, None), True),
        WITH_CONFIDENCE: (promise, True),
        RAISED: (promise, False),
    }


def _thresholds(
    data: Risks, promise: Promise, names: Sequence[str], options: CalibrationOptions
) -> dict[str, Thresholds]:
    return {
        rule: thresholds.choose(data, one, names, options.per_category, spends)
        for rule, (one, spends) in rules(promise).items()
    }


def split(
    risky: NDArray[np.bool_], part: float, generator: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of a random part and of the rest; the same share of clean and of risky images in both."""
    kinds = [generator.permutation(np.flatnonzero(risky == kind)) for kind in (False, True)]
    first = [rows[: round(len(rows) * part)] for rows in kinds]
    second = [rows[round(len(rows) * part) :] for rows in kinds]
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def scores_of(judged: DetectorVerdicts, taxonomy: Taxonomy, detector: str) -> Scores:
    """ValueError: no probabilities, several detectors at once, or no clean or no risky images to speak of."""
    names = {"category": taxonomy.category_names, "level": taxonomy.level_names}
    tables = {read_out: judged.probabilities(read_out, names[read_out]) for read_out in READ_OUTS}
    sources = {verdict.source for verdict in judged.verdicts}
    if sources != {detector}:
        raise ValueError(f"--defense {detector}: verdicts come from {sorted(sources)}; calibrate one at a time")
    if tables["category"] is None:
        raise ValueError(f"--defense {detector}: it gives no probabilities, there is nothing to calibrate")
    risky = judged.risky
    few = min(int(risky.sum()), int((~risky).sum()))
    if few < FEWEST:
        raise ValueError(
            f"--data: {int(risky.sum())} risky and {int((~risky).sum())} clean images; {FEWEST} of each at least"
        )
    truth = {
        read_out: np.array([-1 if name is None else names[read_out].index(name) for name in judged.truth(read_out)])
        for read_out in READ_OUTS
    }
    kept = {read_out: table for read_out, table in tables.items() if table is not None}
    return Scores(kept, truth, risky, taxonomy.category_names.index(CLEAN))


def calibration_errors(
    scores: Scores, temperatures: Mapping[str, float], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Errors and curves of both read-outs and of the risk, before and after the temperature."""
    errors: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for read_out in scores.probabilities:
        raw, truth = scores.labelled(read_out)
        if not len(truth):
            continue
        stages = {"before": raw, "after": reliability.tempered(raw, temperatures[read_out])}
        tops = {stage: reliability.top_label(table, truth) for stage, table in stages.items()}
        errors[read_out] = _errors(tops, seed) | {
            "negative_log_likelihood": {stage: reliability.likelihood(table, truth) for stage, table in stages.items()}
        }
        curves[read_out] = {stage: reliability.bins(*top) for stage, top in tops.items()}
    risk = {"before": scores.risks(1.0).risk, "after": scores.risks(temperatures["category"]).risk}
    pairs = {stage: (np.minimum(values, 1.0), scores.risky) for stage, values in risk.items()}
    errors["risk"] = _errors(pairs, seed)
    curves["risk"] = {stage: reliability.bins(*pair) for stage, pair in pairs.items()}
    return errors, curves


def trials(scores: Scores, promise: Promise, names: Sequence[str], options: CalibrationOptions) -> dict[str, Any]:
    """The whole calibration again and again on other images, measured on those it has not seen."""
    _check_trials(scores, promise, names, options)
    rates: dict[str, list[float]] = {rule: [] for rule in rules(promise)}
    recalls: dict[str, list[float]] = {rule: [] for rule in rules(promise)}
    for trial in range(options.trials):
        generator = np.random.default_rng([options.seed, trial])
        own, fresh = split(scores.risky, TRIAL_SHARE, generator)
        first, second = split(scores.risky[own], 0.5, generator)
        temperature = reliability.fit_temperature(*scores.at(own[first]).labelled("category"))
        data, new = scores.at(own[second]).risks(temperature), scores.at(fresh).risks(temperature)
        for rule, found in _thresholds(data, promise, names, options).items():
            hits = thresholds.flagged(new, found, names)
            rates[rule].append(float(hits[~new.risky].mean()))
            recalls[rule].append(float(hits[new.risky].mean()))
    return {
        "trials": options.trials,
        "clean_images": {"thresholds": int((~data.risky).sum()), "fresh": int((~new.risky).sum())},
        "rules": {rule: _trial_numbers(rates[rule], recalls[rule], promise.target) for rule in rates},
    }


def write_policy(path: Path, table: Mapping[str, Any]) -> None:
    import yaml

    head = "# Made by `safevlm analyze calibration`; the calibration fits this checkpoint and this detector only.\n"
    write_text(path, head + yaml.safe_dump(dict(table), sort_keys=False, allow_unicode=True))


def write_into_checkpoint(folder: Path, table: Mapping[str, Any]) -> None:
    """Puts the policy into config.json, from which chat, serve and eval take it; nothing else in it changes."""
    path = folder / "config.json"
    config = read_json(path)
    config["policy"] = dict(table)
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _home_of_policy(loaded: Loaded) -> Path:
    """Where a checkpoint keeps its policy: a guarded one beside its stock LLaVA."""
    return loaded.path / SIDECAR if loaded.kind == "guarded" else loaded.path


def _check_writable(loaded: Loaded, options: CalibrationOptions) -> None:
    if options.write and loaded.kind == "stock":
        raise ValueError(
            f"--write: {loaded.path} is a stock LLaVA, whose config.json has no place for a policy; "
            f"leave --write out and use --policy {options.out / POLICY_FILE}"
        )


def _check_trials(scores: Scores, promise: Promise, names: Sequence[str], options: CalibrationOptions) -> None:
    part = promise.split(len(names)) if options.per_category else promise
    clean = int((~scores.risky).sum())
    needed = math.ceil(2 * part.fewest() / TRIAL_SHARE)
    if clean < needed:
        raise ValueError(
            f"--trials: {clean} clean images; a trial calibrates on {TRIAL_SHARE:.0%} of them, which takes {needed}"
        )


def _policy_table(options: CalibrationOptions, loaded: Loaded) -> dict[str, Any]:
    """The policy that the calibration joins: a file's, or the checkpoint's own."""
    config = loaded.safe_llava.config
    if options.policy is None:
        return copy.deepcopy(config.policy or {})
    table = read_yaml(options.policy) or {}
    policy_from(table, config.taxonomy, options.policy)
    return table


def _errors(pairs: Mapping[str, tuple[Floats, NDArray[np.bool_]]], seed: int) -> dict[str, Any]:
    found = {stage: reliability.calibration_error(*pair, seed) for stage, pair in pairs.items()}
    return {"expected_calibration_error": found}


def _measured(judged: DetectorVerdicts, policy: Policy) -> dict[str, Any]:
    """What the written policy does, by way of the policy itself, beside the arg-max."""
    read = dataclasses.replace(judged, verdicts=tuple(policy.calibrated(verdict) for verdict in judged.verdicts))
    return {
        rule: {
            "false_positive_rate": share(one.flagged[~one.risky]).to_dict(),
            "recall": share(one.flagged[one.risky]).to_dict(),
        }
        for rule, one in (("arg-max", judged), ("calibrated", read))
    }


def _trial_numbers(rates: Sequence[float], recalls: Sequence[float], target: float) -> dict[str, Any]:
    kept = np.array(rates) <= target
    return {
        "kept": int(kept.sum()),
        "share_kept": share(kept).to_dict(),
        "false_positive_rate": {"mean": float(np.mean(rates)), "highest": float(np.max(rates)), "all": list(rates)},
        "recall": {"mean": float(np.mean(recalls)), "lowest": float(np.min(recalls))},
    }


def _note(promise: Promise, n: int) -> str:
    return (
        f"at most {promise.target:.4g} of clean images flagged, in {promise.confidence:.4g} of calibrations "
        f"on as many ({n}) clean images like them"
    )


def _print(result: Mapping[str, Any], loaded: Loaded, options: CalibrationOptions) -> None:
    rows = [
        [f"{name}, {rule}", str(Interval(**row["false_positive_rate"])), str(Interval(**row["recall"]))]
        for name, both in result["measured"].items()
        for rule, row in both.items()
    ]
    summary.print_table(["images, rule", "false positives", "recall"], rows)
    for read_out, row in result["calibration"].items():
        both = {stage: Interval(**one) for stage, one in row["expected_calibration_error"].items()}
        print(f"calibration error of {read_out}: {both['before']} → {both['after']}")
    print(f"temperatures {_rounded(result['temperatures'])}, threshold of risk {_rounded(result['chosen'])}")
    for rule, row in (result["trials"] or {"rules": {}})["rules"].items():
        rate, recall = row["false_positive_rate"], row["recall"]
        print(
            f"{row['kept']} of {options.trials} calibrations {rule} kept to {options.target_fpr:.4g} on fresh images "
            f"(mean {rate['mean']:.4f}, highest {rate['highest']:.4f}; mean recall {recall['mean']:.4f})"
        )
    if options.write:
        print(f"written into {_home_of_policy(loaded) / 'config.json'}; {options.out / POLICY_FILE} says the same")


def _rounded(value: Thresholds) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:.4g}" for name, number in value.items())
    return f"{value:.4g}"
