"""A detector on sets of labelled images: how the analyses of its verdicts begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safevlm.analysis import detection, summary
from safevlm.analysis.labelled_images import ImageSet, SetsOptions, read_sets
from safevlm.analysis.verdicts import DetectorVerdicts, judge, union
from safevlm.defenses import Defense
from safevlm.defenses.policy import read_policy
from safevlm.model.loading import Loaded


@dataclass(frozen=True)
class JudgedSetsOptions(SetsOptions):
    defense: str = "safety-head"
    policy: str | None = None
    by_group: bool = False


@dataclass(frozen=True)
class GuardedSets:
    """A checkpoint's detector, and the sets that it is to judge."""

    loaded: Loaded
    sets: Sequence[ImageSet]
    guard: Defense

    def judged(self, batch_size: int) -> list[DetectorVerdicts]:
        """Of every set, and behind them of all together, where there are several."""
        judged = judge(self.loaded, self.guard, self.sets, batch_size)
        return [*judged, union(judged)] if len(judged) > 1 else judged


def guarded_sets(kind: str, options: JudgedSetsOptions) -> GuardedSets:
    """`kind`: of the analysis. ValueError: what cannot be loaded, or a folder that holds another one's results."""
    loaded = detection.load(options.model, options.device, options.base)
    config = loaded.safe_llava.config
    sets = read_sets(options.data, config.taxonomy, options.images, options.by_group)
    summary.refuse_other(kind, options.out, loaded, sets, options.seed)
    policy = read_policy(options.policy, config.taxonomy, config.policy)
    return GuardedSets(loaded, sets, detection.detector(loaded, options.defense, policy, sets))
