"""What `safevlm mix` costs, beside a script that holds all rows: CPU seconds and memory, each in a fresh process.

    plain    every line parsed by Python's json and held, nothing checked, stages drawn and written     the peer
    mix      `safevlm mix`: labels, dialogues and images of every row checked, a report with digests

Both write the same `stage2.jsonl`; a round has both, in alternating order.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safevlm.data import mix_build
from safevlm.data.sources.fingerprints import file_digest
from safevlm.evaluation.speed.data_start import MB, in_fresh_process, medians, metered, ratio, synthesised
from safevlm.taxonomy import CLEAN

WAYS = ("plain", "mix")
CLEAN_ROWS = 3_000
"""Of stage 1."""
MIX = {"sources": {"own": {"kind": "llava", "path": "train.jsonl"}}, "labels": {}, "short": "allow"}


def measure(records: int, rounds: int) -> dict[str, Any]:
    """ValueError: the ways write different records."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        size = synthesised(folder, records).stat().st_size
        (folder / "mix.yaml").write_text(json.dumps({**MIX, "root": str(folder)}), encoding="utf-8")
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for index in range(rounds):
            for way in WAYS[:: 1 if index % 2 == 0 else -1]:
                found[way].append(in_fresh_process(__name__, way, folder, folder / "cache"))
    if len({one["digest"] for way in WAYS for one in found[way]}) > 1:
        raise ValueError("the ways write different records; nothing is written")
    return {
        "records": records,
        "bytes": size,
        "rounds": rounds,
        "ways": {way: medians(found[way]) for way in WAYS},
        "ratio": ratio(found["mix"], found["plain"]),
    }


def told(table: Mapping[str, Any]) -> list[str]:
    """The table for a terminal."""
    lines = [f"a mix of {table['records']:,} records, {table['bytes'] / MB:,.0f} MB, {table['rounds']} rounds"]
    for way, row in table["ways"].items():
        time = f"{way:6} {row['cpu_seconds']:8.2f} CPU s ({row['seconds']:.2f} s)"
        lines.append(f"{time}  {row['memory_mb']:8.0f} MB over imports, {row['peak_mb']:.0f} MB in all")
    of = table["ratio"]
    return [*lines, f"mix {of['value']:.3f} x plain [{of['low']:.3f}, {of['high']:.3f}]"]


def _plain(folder: Path, out: Path) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    made = [_record(row, folder) for row in rows]
    clean = [number for number, row in enumerate(made) if row["safe_type"] == CLEAN]
    drawn = set(random.Random(0).sample(clean, min(CLEAN_ROWS, len(clean))))
    first = [row for number, row in enumerate(made) if row["safe_type"] != CLEAN or number in drawn]
    for name, records in (("stage1", first), ("stage2", made)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _record(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    image = {"image": str(folder.resolve() / row["image"])} if "image" in row else {}
    rest = {name: row[name] for name in ("safe_type", "safe_level", "conversations")}
    return {"id": f"own/{row['id']}", "source": "own", **image, **rest}


def _measured(way: str, folder: Path) -> dict[str, Any]:
    with TemporaryDirectory() as made:
        out = Path(made)
        work = (lambda: _plain(folder, out)) if way == "plain" else (lambda: mix_build.build(folder / "mix.yaml", out))
        _, told = metered(work)
        return {**told, "digest": file_digest(out / "stage2.jsonl")}


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1], Path(sys.argv[2]))))
