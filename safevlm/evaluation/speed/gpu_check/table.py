"""The rows for people: markdown with what was measured, what was not, and the goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safevlm.evaluation.speed.gpu_check import goals, rows
from safevlm.evaluation.speed.gpu_check.rows import Row

GIB = 2**30
FACTS = ("device", "driver", "cuda", "capability", "python", "cpus", "shape", "commit", "changed since")


def text(found: Mapping[str, Row], about: Mapping[str, Any]) -> str:
    """The whole page. `about`: command, start and seconds of the call that writes it."""
    parts = [
        ["# GPU check", "", *_head(found, about)],
        _steps(found),
        _training(found),
        *(_engine(found, name) for name in found if "first_token" in rows.result(found, name)),
        _rest(found),
        _goals(found),
    ]
    return "\n".join("\n".join([*part, ""]) for part in parts if part)


def _head(found: Mapping[str, Row], about: Mapping[str, Any]) -> Iterator[str]:
    machine = rows.result(found, "machine")
    told = [f"{name} {machine[name]}" for name in FACTS if machine.get(name) is not None]
    told += [f"{name} {version}" for name, version in machine.get("versions", {}).items() if version]
    yield "; ".join(told) or "No step has told what machine this is."
    yield ""
    yield f"`{' '.join(about.get('command', ()))}`, started {about.get('started', '?')}; " + (
        f"{about['seconds']} s of {about['budget']:.0f} s" if "seconds" in about else "under way, or cut"
    )


def _steps(found: Mapping[str, Row]) -> list[str]:
    lines = ["## Steps", "", "| step | status | seconds | estimate (7b on an H200) | why |", "|---|---|---:|---:|---|"]
    for name, row in found.items():
        seconds = row["seconds"] + row.get("start_seconds", 0.0)
        why = row.get("why", "").strip().splitlines()
        lines.append(f"| {name} | {row['status']} | {seconds:.1f} | {row['estimate']:.0f} | {_cell(why)} |")
    return lines


def _cell(lines: Sequence[str]) -> str:
    """Of a traceback the last line says what it was."""
    return lines[-1][:160].replace("|", "\\|") if lines else ""


def _training(found: Mapping[str, Row]) -> list[str]:
    measured = {name: rows.result(found, name) for name in found}
    measured = {name: result for name, result in measured.items() if "samples_per_second" in result}
    if not measured:
        return []
    lines = [
        "## Training",
        "",
        "MFU is the model's operations by formula over the peak: measured, and of the data sheet. Memory",
        "in GiB: what the card had in use at the peak, what of it torch had allocated, and what `check` predicts.",
        "",
        "| step | s/step [95 %] | samples/s | TFLOP/step | MFU, measured | data sheet | in use | torch | `check` |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in measured.items():
        memory, mfu = one["memory"], one.get("mfu", {})
        own = memory.get("in_use", memory.get("process"))
        cells = [
            name,
            _interval(one["seconds_per_step"]),
            f"{one['samples_per_second']:.2f}",
            _number(one.get("tflop_per_step"), ".2f"),
            _number(mfu.get("measured"), ".1%"),
            _number(mfu.get("data sheet"), ".1%"),
            _gib(own),
            _gib(memory.get("allocated")),
            _gib(one.get("predicted", {}).get("total")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _engine(found: Mapping[str, Row], name: str) -> list[str]:
    one = rows.result(found, name)
    lines = [
        f"## {name[0].upper()}{name[1:]}",
        "",
        f"{one['prompt_tokens']} tokens in, {one['new_tokens']} out, {one['rounds']} rounds; ratios to plain",
        "are medians of pairs, [95 % bootstrap].",
        "",
        "| way | first token, s | ratio | answer, s | ratio | per token, ms | answers as plain's |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for way, first in one["first_token"].items():
        answer = one["answer"][way]
        each = one["seconds_per_token"].get(way)
        cells = [
            way,
            f"{first['seconds']:.4f}",
            _interval(first["ratio"]),
            f"{answer['seconds']:.4f}",
            _interval(answer["ratio"]),
            _number(each and each * 1e3, ".2f"),
            f"{one['same_as_plain'][way]:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rest(found: Mapping[str, Row]) -> list[str]:
    """What the other steps measured, as it is."""
    lines = []
    for name in found:
        result = rows.result(found, name)
        if name == "machine" or not result or "samples_per_second" in result or "first_token" in result:
            continue
        lines += [f"| {name} | {key} | {_value(value)} |" for key, value in _flat(result)]
    return ["## Other numbers", "", "| step | number | value |", "|---|---|---:|", *lines] if lines else []


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}: ")
        else:
            yield f"{before}{key}", value


def _goals(found: Mapping[str, Row]) -> list[str]:
    lines = ["## Goals", "", "| goal | bound | measured | met |", "|---|---|---|---|"]
    for goal in goals.GOALS:
        value = goal.measured(found)
        sign = "≤" if goal.at_most else "≥"
        if not goals.count(found):
            met = "not asked: this is no card, or not the 7B shape"
        else:
            met = "not measured" if value is None else "yes" if goal.met(value) else "no"
        lines.append(f"| {goal.name} | {sign} {goal.bound:g} | {_number(value, '.4g')} | {met} |")
    return lines


def _interval(table: Mapping[str, Any]) -> str:
    return "{value:.4g} [{low:.4g}, {high:.4g}]".format(**table)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _gib(amount: float | None) -> str:
    return _number(None if amount is None else amount / GIB, ".2f")


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
