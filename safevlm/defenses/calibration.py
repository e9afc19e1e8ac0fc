"""What a detector's probabilities are worth, and from which risk on to believe it: part of a policy, per detector.

    calibration:
      safety-head:
        temperatures: {level: 1.4, category: 1.2}   # probabilities become softmax(log p / temperature)
        risk: 0.31                                  # a risk is seen from this probability on, and only then
        note: what was promised of it

The risk of a request is the sum of its risky categories' probabilities, 1 - p(clean). `risk` takes the place of the
arg-max: below it the verdict is clean, whatever was likeliest; from it on it is the likeliest risky category at the
likeliest risky level. It may be a table, one number for every risky category; the likeliest one's then counts. The
trap: a threshold belongs to the temperatures, the weights and the detector that it was found with, and to no other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from safevlm.taxonomy import CLEAN, SAFE, Taxonomy
from safevlm.types import Verdict

READ_OUTS = ("level", "category")
SMALLEST = 2.0**-126
"""Smallest normal float32: a probability that was rounded to 0 has a logarithm all the same."""


@dataclass(frozen=True)
class Calibration:
    """How to read one detector."""

    temperatures: Mapping[str, float] = field(default_factory=dict)
    """By read-out, `level` or `category`; 1 where none is given."""
    risk: float | Mapping[str, float] | None = None
    """A verdict is risky from this risk on; none: the arg-max of both read-outs decides."""
    note: str = ""

    def read(self, verdict: Verdict, taxonomy: Taxonomy) -> Verdict:
        """The verdict with tempered probabilities, and decided by risk where there is a threshold.

        A verdict without probabilities (words alone, a detector that gives none or failed) stays as it is.
        """
        if not verdict.category_probabilities:
            return verdict
        read = dataclasses.replace(
            verdict,
            level_probabilities=tempered(verdict.level_probabilities, self.temperatures.get("level", 1.0)),
            category_probabilities=tempered(verdict.category_probabilities, self.temperatures.get("category", 1.0)),
        )
        return read if self.risk is None else self._decided(read, taxonomy, self.risk)

    def _decided(self, verdict: Verdict, taxonomy: Taxonomy, risk: float | Mapping[str, float]) -> Verdict:
        category = likeliest(verdict.category_probabilities, CLEAN)
        threshold = risk[category] if isinstance(risk, Mapping) else risk
        if risk_of(verdict.category_probabilities) < threshold:
            return dataclasses.replace(verdict, level=SAFE, category=CLEAN)
        if verdict.level_probabilities:
            level = likeliest(verdict.level_probabilities, SAFE)
        else:
            level = verdict.level if verdict.level != SAFE else taxonomy.level_names[1]
        return dataclasses.replace(verdict, level=level, category=category)


def risk_of(category_probabilities: Mapping[str, float]) -> float:
    """1 - p(clean) as a sum of the others, which keeps the digits of a small risk."""
    return math.fsum(likely for name, likely in category_probabilities.items() if name != CLEAN)


def joint_risk(verdict: Verdict) -> float:
    """The smaller of 1 - p(clean) and 1 - p(safe): a verdict that is clean by either is of small risk. Of a verdict
    without probabilities 1 or 0."""
    tables = ((verdict.category_probabilities, CLEAN), (verdict.level_probabilities, SAFE))
    risks = [
        math.fsum(likely for name, likely in table.items() if name != neutral) for table, neutral in tables if table
    ]
    return min(risks, default=float(not verdict.is_clean))


def likeliest(probabilities: Mapping[str, float], neutral: str) -> str:
    """The likeliest name but the neutral one."""
    return max((name for name in probabilities if name != neutral), key=probabilities.__getitem__)


def tempered(probabilities: Mapping[str, float], temperature: float) -> Mapping[str, float]:
    """softmax(log p / temperature): logits divided by the temperature. 1 leaves every bit as it is."""
    if temperature == 1.0:
        return probabilities
    powers = {name: math.log(max(likely, SMALLEST)) / temperature for name, likely in probabilities.items()}
    highest = max(powers.values(), default=0.0)
    weights = {name: math.exp(power - highest) for name, power in powers.items()}
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def check_calibration(calibration: Calibration, taxonomy: Taxonomy, where: str) -> None:
    """ValueError, beginning with `where`: a read-out that there is not, a number that is none of its kind."""
    for name, value in calibration.temperatures.items():
        if name not in READ_OUTS:
            raise ValueError(f"{where}.temperatures: unknown read-out {name!r}; one of {list(READ_OUTS)}")
        if not 0 < value < math.inf:
            raise ValueError(f"{where}.temperatures.{name}: {value!r} is not a temperature; a number above 0")
    risk, risky = calibration.risk, [name for name in taxonomy.category_names if name != CLEAN]
    if isinstance(risk, Mapping) and set(risk) != set(risky):
        raise ValueError(
            f"{where}.risk: a table must name every risky category and no other: {risky}, not {list(risk)}"
        )
    for value in risk.values() if isinstance(risk, Mapping) else [] if risk is None else [risk]:
        if not 0 <= value <= 1:
            raise ValueError(f"{where}.risk: {value!r} is not a probability")
