"""Attack a guarded model on the harmful requests of a suite: a run's folder for every attack.

    OUT/bare       the unguarded model on the requests as they are: the answers that an attacker wants to hear
    OUT/clean      the guarded model on the same requests
    OUT/ATTACK     the guarded model on the attacked ones; images lie in `images`

All of them are asked, stopped, gone on with and judged like any other run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safevlm.evaluation.attacks.job import AttackJob, Effort
from safevlm.evaluation.attacks.row import Attack
from safevlm.evaluation.judges import judge_of
from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.runs.ask import ask, load_engine
from safevlm.evaluation.runs.files import SCORES, read_replies
from safevlm.evaluation.suites import load_suite, suite_of
from safevlm.types import Sample
from safevlm.usage import UsageError

BARE, CLEAN = "bare", "clean"


@dataclass(frozen=True)
class Target:
    """A guarded model and the requests that are tried on it."""

    suite: str
    data: Path
    model: str
    defense: str
    groups: tuple[str, ...]
    """Of the suite's harmful ones that have images."""
    policy: str | None = None
    base: str | None = None
    device: str = "auto"
    limit: int | None = None
    batch_size: int = 64
    max_new_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class RequestsAttacked:
    """An attack as `safevlm.evaluation.runs.ask` takes it."""

    attack: Attack
    seed: int
    effort: Effort
    answers: Mapping[str, str]
    partners: Sequence[Path] = ()
    images_of: Path | None = None
    """Take images that were made for another model, by request."""

    def __str__(self) -> str:
        return str(self.attack)

    @property
    def facts(self) -> dict[str, Any]:
        is_from = {"images_of": str(self.images_of)} if self.images_of else {}
        return {"effort": asdict(self.effort), **is_from} if self.attack.needs_white_box else is_from

    def change(self, samples: Sequence[Sample], folder: Path, engine: Any) -> list[Sample]:
        job = AttackJob(
            samples,
            self.images_of or folder,
            self.seed,
            engine,
            self.answers,
            self.partners,
            self.effort,
        )
        if self.images_of is None:
            return self.attack.make(job)
        absent = job.waiting()
        if absent:
            raise ValueError(f"{self.images_of}: has no image of {absent[0].request.id!r}; give an attack's `images`")
        return job.changed()


def harmful_groups(suite: str, chosen: Sequence[str] = ()) -> tuple[str, ...]:
    """Those of the suite's harmful groups that have images, or the chosen ones among them. UsageError."""
    asked = suite_of(suite)
    known = tuple(name for name, group in asked.groups.items() if group.is_harmful and group.image != "never")
    strange = [name for name in chosen if name not in known]
    if strange or not known:
        told = f"--group {strange[0]}: no" if strange else f"suite {suite!r}: has no"
        raise UsageError(f"{told} harmful group with images; there are {list(known)}")
    return tuple(chosen) or known


def attack_all(
    target: Target,
    attacks: Sequence[Attack],
    out: Path,
    effort: Effort,
    *,
    answers_of: Path | None = None,
    images_of: Path | None = None,
    command: str = "",
) -> list[Path]:
    """The folders of the runs, `CLEAN` first. What is there already is not made again.

    `answers_of`: a run of the unguarded model whose replies the attacker wants to hear; none: this model is asked
    without its defense. A model that refuses by itself needs one, since it is no help to an attacker. `images_of`: a
    folder of attacked images by attack (another target's `out`), which are tried on this model as they are.
    """
    bare = answers_of or out / BARE
    engine = load_engine(target.model, target.defense, [], policy=target.policy, device=target.device, base=target.base)
    if answers_of is None:
        _ask(target, bare, "none", None, engine.behind("none"), command)
    answers = {row["id"]: row["reply"] for row in read_replies(bare)}
    partners = _partners(target)
    _ask(target, out / CLEAN, target.defense, None, engine, command)
    for attack in attacks:
        source = images_of / attack.folder / "images" if images_of else None
        change = RequestsAttacked(attack, target.seed, effort, answers, partners, source)
        _ask(target, out / attack.folder, target.defense, change, engine, command)
    return [out / CLEAN, *(out / attack.folder for attack in attacks)]


def judge_all(suite: str, folders: Sequence[Path]) -> None:
    """Scores of the runs by the suite's own judge. ValueError: it needs a model of its own, and has to be called."""
    own = judge_of(suite_of(suite).judge)
    if own.needs_model:
        raise ValueError(
            f"the judge {own.name!r} needs a model of its own: `safevlm eval judge --out DIR` for each folder, then "
            "this command again"
        )
    for folder in folders:
        judge(folder)


def are_judged(folders: Sequence[Path]) -> bool:
    return all((folder / SCORES).exists() for folder in folders)


def _ask(target: Target, out: Path, defense: str, change: Any, engine: Any, command: str) -> None:
    ask(
        target.suite,
        target.data,
        target.model,
        defense,
        out,
        policy=target.policy if defense != "none" else None,
        batch_size=target.batch_size,
        max_new_tokens=target.max_new_tokens,
        limit=target.limit,
        groups=target.groups,
        attack=change,
        device=target.device,
        base=target.base,
        seed=target.seed,
        command=command,
        engine=engine,
    )


def _partners(target: Target) -> list[Path]:
    """Images of the suite's benign requests."""
    suite = suite_of(target.suite)
    benign = set(suite.groups_on("benign"))
    samples = load_suite(suite, target.data)
    return [Path(str(image)) for one in samples if one.group in benign for image in one.request.images[:1]]
