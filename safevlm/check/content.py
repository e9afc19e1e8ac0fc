"""The checks of what a recipe trains on: records, labels, images, and samples as the model will see them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from safevlm.check import samples
from safevlm.check.findings import Finding, listed
from safevlm.check.lazy_parts import Skipped
from safevlm.check.plan import RunPlan
from safevlm.data.records import Record, is_clean
from safevlm.taxonomy import Taxonomy
from safevlm.training import updates
from safevlm.training.lesson import check_lesson

WIDTH = 100
"""Of a line of the sample."""


def records(plan: RunPlan) -> Iterator[Finding]:
    usable, problems = plan.rows
    if problems:
        files = ", ".join(plan.recipe.data.train)
        yield Finding(False, f"data.train: {len(problems)} records of {files} cannot be used", listed(problems))
        return
    left_out = len(usable) - len(plan.records)
    detail = f"{left_out} clean records left out (data.clean: {plan.recipe.data.clean})" if left_out else ""
    yield _updates(plan, detail)


def _updates(plan: RunPlan, detail: str) -> Finding:
    optim, told = plan.recipe.optim, f"{len(plan.records)} records"
    if plan.stage.fit:
        return Finding(True, told, detail)
    _ = plan.accumulation  # whether the batch can be split is another check's
    sizes = (optim, len(plan.records), plan.cluster.processes)
    per_epoch, in_all = updates.per_epoch(*sizes), updates.in_all(*sizes)
    updates.check_warmup(optim, in_all)
    return Finding(True, f"{told}; updates: {per_epoch} per epoch, {in_all} in all", detail)


def labels(plan: RunPlan) -> Iterator[Finding]:
    """Counts by category and level. Without a single verdict the head has nothing to learn."""
    chosen, taxonomy = plan.records, plan.taxonomy
    labelled = [record for record in chosen if record.images and None not in (record.safe_type, record.safe_level)]
    bare = sum(not record.images for record in chosen)
    try:
        check_lesson(plan.stage, plan.recipe, plan.checkpoint.config.safety_config, chosen)
    except ValueError as error:
        yield Finding(False, f"labels: {error}")
        return
    clean = sum(is_clean(record, taxonomy) for record in chosen)
    yield Finding(
        True,
        f"labels: {len(labelled)} of {len(chosen)} records have a verdict, {clean} are clean, {bare} have no image",
        "\n".join(_counts(chosen, taxonomy)),
    )


def _counts(chosen: Sequence[Record], taxonomy: Taxonomy) -> Iterator[str]:
    yield _row("category", (record.safe_type for record in chosen), taxonomy.category_names)
    yield _row("level", (record.safe_level for record in chosen), taxonomy.level_names)


def _row(kind: str, ids: Iterable[int | None], names: Sequence[str]) -> str:
    counts = Counter(ids)
    parts = [f"{name} {counts[index]}" for index, name in enumerate(names)]
    unlabelled = [f"unlabelled {counts[None]}"] if counts[None] else []
    return f"{kind + ':':<10}{', '.join([*parts, *unlabelled])}"


def images(plan: RunPlan) -> Iterator[Finding]:
    """One that does not open would stop the run."""
    problems, looked = plan.unreadable
    total = sum(bool(record.images) for record in plan.records)
    note = f"; {looked} of {total} records looked at, safevlm check DATA opens all" if total > looked else ""
    if problems:
        yield Finding(False, f"{len(problems)} images cannot be read{note}", listed(problems))
    elif total:
        yield Finding(True, f"images of {looked} records can be read{note}")


def slots(plan: RunPlan) -> Iterator[Finding]:
    """Image tokens against the model's slots, the length limit, and labels against answers."""
    sample, limit = plan.sample, plan.longest
    by_recipe = limit == plan.recipe.data.max_length
    told, fix = (
        (f"data.max_length {limit} cuts", "raise it or shorten")
        if by_recipe
        else (f"the model's {limit} positions cut", "shorten")
    )
    of = f"of {len(sample.rows) + len(sample.broken)} sampled records"
    cases = (
        (sample.slots, f"{{}} {of} have image tokens that the model does not take"),
        (sample.cut, f"{told} {{}} {of}; {fix} them"),
        (sample.answers, f"{{}} {of} learn something else than their answer"),
        ([one for one in sample.broken if one not in plan.unreadable[0]], f"{{}} {of} cannot be encoded"),
    )
    bad = [(problems, title.format(len(problems))) for problems, title in cases if problems]
    yield from (Finding(False, title, listed(problems)) for problems, title in bad)
    if not sample.rows:
        raise Skipped("no record could be encoded")
    if not bad:
        slots_each = plan.skeleton.slots or "its own number of"
        yield Finding(
            True,
            f"{len(sample.rows)} records encoded: {slots_each} slots per image, none cut at {limit} tokens, "
            "what is learned is the answer",
            samples.lengths(sample.rows),
        )


def sample(plan: RunPlan) -> Iterator[Finding]:
    """One record as the model sees it."""
    if not plan.sample.rows:
        raise Skipped("no record could be encoded")
    row = samples.typical(plan.sample.rows, plan.taxonomy)
    text = samples.shown(row, plan.processor)
    lines = [
        *textwrap.wrap(text.replace("\n", "⏎ "), WIDTH),
        samples.verdict(row.record, plan.taxonomy),
        f"{row.length} tokens, {row.image_tokens} image slots, {row.learned} learned; pixels {row.pixels}",
    ]
    title = f"as the model sees {row.record.place} ({samples.OPEN}learned{samples.CLOSE}):"
    yield Finding(True, title, "\n".join(lines))
