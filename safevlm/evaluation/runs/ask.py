"""Put a suite's questions to a model behind a defense: `replies.jsonl` and `run.json`.

A run that was stopped goes on where it was: replies are on disk after every batch, and ids that are there are not
asked again. The images of the next batch are read while the model answers one. Several processes (torchrun, or
`--shard I/N` each) ask a part each (`safevlm.evaluation.runs.shards`). A request that a served model could not answer
goes to `failed.jsonl` and is asked again the next time; it never becomes a reply. The engine (and torch) is imported
late, so that judging and reporting never load it.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm
from typing_extensions import TypedDict

from safevlm import sharding
from safevlm.data import perturbations
from safevlm.data.row_log import append_rows, drop_half_written_line
from safevlm.defenses.table import members
from safevlm.evaluation.endpoint import GIVE_UP_AFTER
from safevlm.evaluation.judges import judge_of
from safevlm.evaluation.runs import changed_images, earlier, run_file, served, shards, suite_file
from safevlm.evaluation.runs.files import REPLIES, Row, write_rows
from safevlm.evaluation.runs.served import Failure, Served
from safevlm.evaluation.suites import Suite, folder_of, load_suite, suite_of
from safevlm.evaluation.suites.question import REPEAT
from safevlm.sharding import Share, share_of
from safevlm.types import Generation, Reply, Sample, Verdict
from safevlm.usage import UsageError

FAILED = "failed.jsonl"
Item = TypeVar("Item")


class RequestChange(Protocol):
    """What is done to requests before they are asked. Its `str` tells it from another one in `run.json`."""

    @property
    def facts(self) -> dict[str, Any]:
        """More of it for `run.json`."""

    def change(self, samples: Sequence[Sample], folder: Path, engine: Any) -> list[Sample]:
        """The samples in order, each with its id and a changed request; changed images lie in the folder."""


class FailedRow(TypedDict):
    """A line of `failed.jsonl`."""

    id: str
    suite: str
    group: str
    kind: str
    error: str


def ask(
    suite: str,
    data: str | Path,
    model: str | Path,
    defense: str,
    out: str | Path,
    *,
    policy: str | Path | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    groups: Sequence[str] = (),
    perturb: str = "",
    images: str | Path | None = None,
    attack: RequestChange | None = None,
    partial: bool = False,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
    shard: str | None = None,
    command: str = "",
    engine: Any = None,
) -> int:
    """Ask what is not answered yet and return how many replies came. `engine` stands in for the loaded one.

    `max_new_tokens` is the suite's unless given. `shard` I/N: ask only the I-th of N parts; without it, what torchrun
    says in the environment, or everything. `partial`: go on with a suite that is not complete. `groups`: only these.
    `perturb`: ask about changed images (`safevlm.data.perturbations`), which are kept in `images`. `attack`: ask
    changed requests.
    """
    if batch_size < 1:
        raise UsageError(f"--batch-size: {batch_size} is too small; give 1 or more")
    asked = suite_of(suite)
    judge_of(asked.judge, f"suite {asked.name}: judge")  # a wrong name is told before hours of asking
    max_new_tokens = asked.max_new_tokens if max_new_tokens is None else max_new_tokens
    perturbation = perturbations.parse(perturb)
    if engine is None:
        members(defense)  # the same for a defense
    folder, share = Path(out), share_of(shard)
    everything = load_suite(asked, Path(data), partial)
    served.check_alone(str(model), share.world)
    record: dict[str, Any] = {
        "suite": asked.name,
        "data": str(data),
        "model": str(model),
        "defense": defense,
        "policy": str(policy) if policy else None,
        "base": base,
        "max_new_tokens": max_new_tokens,
        **({"temperature": asked.temperature} if asked.temperature else {}),
        "batch_size": batch_size,
        "groups": list(groups) or None,
        "perturb": str(perturbation) if perturbation else None,
        **({"attack": str(attack), **attack.facts} if attack else {}),
        "partial": partial,
        "processes": share.world,
        "seed": seed,
        "device": device,
        "digests": run_file.digests(
            everything,
            str(model),
            str(policy) if policy else None,
            defense,
            base,
            data=folder_of(asked, Path(data)),
            reads_images=bool(asked.digest),
        )
        | ({"suite": asked.digest} if asked.digest else {}),
        "versions": run_file.versions(),
        "started": run_file.now(),
        "command": command,
    }
    chosen = _chosen(everything, asked, groups, perturb)
    samples = spread(chosen, limit)
    record |= {"n": len(samples), "n_without_limit": len(chosen)}
    if (folder / run_file.FILE).exists():
        run_file.check_same_run(folder / run_file.FILE, record)
    mine, count = shards.portion(samples, share), 0
    if _unanswered(mine, folder):
        engine = engine or load_engine(model, defense, mine, policy=policy, device=device, base=base, seed=seed)
        with sharding.owned(folder / shards.OWNERS, share):
            waiting = _unanswered(mine, folder)
            suite_file.write(folder, asked)
            run_file.begin(folder, record | _facts(engine), share.rank, is_going_on=len(waiting) < len(mine))
            if perturbation:
                place = Path(images) if images else earlier.changed_images(folder, changed_images.FOLDER)
                waiting = changed_images.changed(waiting, perturbation, place)
            if attack:
                waiting = attack.change(waiting, folder / changed_images.FOLDER, engine)
            generation = Generation(max_new_tokens=max_new_tokens, temperature=asked.temperature, seed=seed)
            count = _ask_all(engine, waiting, folder, share, batch_size, generation, partial)
    shards.join(folder, [sample.request.id for sample in everything], [sample.request.id for sample in samples])
    return count


def _chosen(samples: Sequence[Sample], suite: Suite, groups: Sequence[str], perturb: str) -> list[Sample]:
    """Samples of the groups; of changed images, those that have any. ValueError: none is left."""
    wanted = {suite.check_group(group, "--group") for group in groups} or {sample.group for sample in samples}
    chosen = [sample for sample in samples if sample.group in wanted and (sample.request.images or not perturb)]
    if samples and not chosen:
        raise ValueError(f"--group {', '.join(groups) or 'all'}: no request {'with an image ' * bool(perturb)}there")
    return chosen


def missing(out: str | Path) -> tuple[int, list[Row]]:
    """How many requests of a run have no reply yet, and the failures among them."""
    folder = Path(out)
    answered = shards.read_all(folder)
    return run_file.read(folder).get("n", 0) - len(answered), read_failed(folder)


def read_failed(folder: Path) -> list[Row]:
    """Rows of `failed.jsonl`; none when nothing failed."""
    path = folder / FAILED
    return list(shards.complete_rows(path, FailedRow)) if path.exists() else []


def load_engine(
    model: str | Path,
    defense: str,
    samples: Sequence[Sample],
    *,
    policy: str | Path | None = None,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
) -> Any:
    """The engine with the true labels at hand, which only the `oracle` defense looks at; or a served model."""
    if served.is_address(str(model)):
        return served.connect(str(model), defense, policy=policy)
    import torch

    from safevlm.engine import Engine

    torch.manual_seed(seed)
    truths = {
        sample.request.id: Verdict(level=sample.level, category=sample.category, source="oracle") for sample in samples
    }
    return Engine.load(model, defense=defense, policy=policy, device=_own(device), base=base, truths=truths)


def spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, the groups in turn, in the order of the file."""
    if limit is None:
        return list(samples)
    if limit < 1:
        raise UsageError(f"--limit: {limit} samples are too few; give 1 or more, or leave it out")
    seen: Counter[str] = Counter()
    ranks = []
    for position, sample in enumerate(samples):
        ranks.append((seen[sample.group], position))
        seen[sample.group] += 1
    return [samples[position] for position in sorted(position for _, position in sorted(ranks)[:limit])]


def blocks_of(samples: Sequence[Sample], blocks: int, block_size: int, data: str | Path) -> list[list[Sample]]:
    """`blocks` + 1 blocks of samples; each holds all groups, since the samples are dealt out, not cut.

    ValueError: too few of them in `data`.
    """
    chosen = spread(samples, (blocks + 1) * block_size)
    if len(chosen) < (blocks + 1) * block_size:
        raise ValueError(
            f"{data}: {len(chosen)} requests are too few for {blocks} + 1 blocks of {block_size}; give a smaller "
            "--blocks or --block-size"
        )
    return [chosen[number :: blocks + 1] for number in range(blocks + 1)]


def _own(device: str) -> str:
    """Under torchrun each process takes the GPU of its local rank."""
    import torch

    local = sharding.local_rank()
    has_choice = local is not None and device in ("auto", "cuda")
    return f"cuda:{local}" if has_choice and torch.cuda.is_available() else device


def _facts(engine: Any) -> dict[str, Any]:
    """What only the loaded model knows of the run."""
    return engine.facts() if isinstance(engine, Served) else {"dtype": str(engine.model.dtype)}


def _unanswered(samples: Sequence[Sample], out: Path) -> list[Sample]:
    answered = shards.read_all(out)
    # In this order: of several processes, the first to add a reply has written run.json before it.
    if (answered or (out / REPLIES).exists()) and not (out / run_file.FILE).exists():
        raise ValueError(f"{out / REPLIES} has no {run_file.FILE} beside it; choose another --out, or remove it")
    return [sample for sample in samples if sample.request.id not in answered]


def _ask_all(
    engine: Any,
    samples: Sequence[Sample],
    out: Path,
    share: Share,
    batch_size: int,
    generation: Generation,
    partial: bool,
) -> int:
    """Number of replies. What failed stands in `failed.jsonl`, which tells of this start only.

    ValueError: a request whose image or words cannot be used, unless `partial`: then it is one that failed.
    """
    part, failed, in_a_row = shards.file_of(out, share), [], 0
    drop_half_written_line(part)
    name = "ask" if share.world == 1 else f"ask {share.rank + 1}/{share.world}"
    with tqdm(total=len(samples), desc=name, unit="request", position=share.rank) as bar:
        batches = (
            (repeat, batch, [sample.request for sample in batch]) for repeat, batch in _batches(samples, batch_size)
        )
        for (repeat, batch, requests), following in _with_next(batches):
            if following is not None:
                engine.read_ahead(following[2])
            drawn = replace(generation, seed=generation.seed + repeat)
            answers = _usable(engine.reply_all(requests, drawn, batch_size=batch_size), partial)
            pairs = list(zip(batch, answers, strict=True))
            append_rows(part, [_row(sample, answer, out) for sample, answer in pairs if isinstance(answer, Reply)])
            failed += [_failed_row(sample, answer) for sample, answer in pairs if isinstance(answer, Failure)]
            _note(out / FAILED, failed)
            in_a_row = in_a_row + len(batch) if all(_is_silence(answer) for answer in answers) else 0
            if in_a_row >= GIVE_UP_AFTER:
                raise ValueError(
                    f"the server answered none of the last {in_a_row} requests: {failed[-1]['error']}; "
                    "once it does, the same command goes on"
                )
            bar.update(len(batch))
    return len(samples) - len(failed)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[tuple[int, Sequence[Sample]]]:
    """(repeat, samples): of questions that are asked several times, one asking after the other, as seeds differ.

    Within one, the longest prompts first: a batch waits for its longest answer, and prompts alike have answers alike.
    """
    of_repeat: dict[int, list[Sample]] = {}
    for sample in samples:
        of_repeat.setdefault(sample.expected.get(REPEAT, 0), []).append(sample)
    for repeat, mixed in of_repeat.items():
        own = sorted(mixed, key=_prompt_length, reverse=True)
        yield from ((repeat, own[start : start + size]) for start in range(0, len(own), size))


def _with_next(items: Iterable[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Each item and the one behind it; None behind the last."""
    now, ahead = itertools.tee(items)
    return zip(now, itertools.chain(itertools.islice(ahead, 1, None), [None]), strict=True)


def _prompt_length(sample: Sample) -> tuple[int, int]:
    """Images and letters; letters stand for tokens, so that nothing is tokenized twice."""
    request = sample.request
    said = (request.system, request.text, *(text for pair in request.history for text in pair))
    return len(request.images), sum(map(len, said))


def _usable(answers: Sequence[Reply | Failure], partial: bool) -> list[Reply | Failure]:
    """The answers; one to a request that cannot be used is a failure."""
    found: list[Reply | Failure] = []
    for answer in answers:
        is_unusable = isinstance(answer, Reply) and bool(answer.error)
        if is_unusable and not partial:
            raise ValueError(f"{answer.error}; mend or replace it, or go on without it by --partial")
        found.append(Failure(answer.request, "unusable", answer.error) if is_unusable else answer)
    return found


def _is_silence(answer: Reply | Failure) -> bool:
    return isinstance(answer, Failure) and answer.kind == "failed"


def _note(path: Path, failed: Sequence[Row]) -> None:
    if failed:
        write_rows(path, failed)
    else:
        path.unlink(missing_ok=True)


def _failed_row(sample: Sample, failure: Failure) -> Row:
    return {
        "id": sample.request.id,
        "suite": sample.suite,
        "group": sample.group,
        "kind": failure.kind,
        "error": failure.error,
    }


def _row(sample: Sample, reply: Reply, out: Path) -> Row:
    if reply.request.id != sample.request.id:
        raise ValueError(f"the engine answered {reply.request.id!r} where {sample.request.id!r} was asked")
    return {
        "id": sample.request.id,
        "suite": sample.suite,
        "group": sample.group,
        "request": {"text": sample.request.text, "images": [_seen_from(out, image) for image in sample.request.images]},
        "reply": reply.text,
        "refused_by": reply.refused_by,
        "prompt": reply.prompt,
        "verdict": reply.verdict.to_dict(),
        "truth": {"category": sample.category, "level": sample.level, **sample.expected},
        "trace": list(reply.trace),
        "seconds": reply.seconds,
    }


def _seen_from(out: Path, image: Any) -> str:
    """The image's path from the run's folder, so that data and runs may move together."""
    return Path(os.path.relpath(Path(image).resolve(), out.resolve())).as_posix()
