"""How long a training process takes to have its records, and how much of its memory, beside a list of parsed ones.

    list     every record parsed and held                        the peer (`read_records`)
    first    checked, and packed to the disk                     once for a file
    again    found packed, images looked for                     every other process, and every later start

Each is a fresh process, which then reads records at random; a round has all three, in alternating order. Seconds are
CPU seconds, those of processes that it starts among them; memory is the process's peak over what imports alone take.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from PIL import Image

from safevlm.data.record_table import open_records
from safevlm.data.records import Record, read_records
from safevlm.data.sources.fingerprints import bytes_digest
from safevlm.intervals import bootstrap_median
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE

WAYS = ("list", "first", "again")
ORDERS = (("list", "first", "again"), ("first", "again", "list"))
"""`again` follows `first`, which makes what it finds."""
READS = 2_000
"""Records that each process reads after its start."""
IMAGES = 64
WORDS = ("the", "a", "picture", "shows", "person", "with", "red", "car", "street", "house", "water", "sky", "people")
MB = 1e6

Made = TypeVar("Made")


def measure(records: int, rounds: int) -> dict[str, Any]:
    """ValueError: the ways read different records."""
    with TemporaryDirectory() as made:
        file = synthesised(Path(made), records)
        size = file.stat().st_size
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for index in range(rounds):
            cache = Path(made) / f"cache{index}"
            for way in ORDERS[index % 2]:
                found[way].append(in_fresh_process(__name__, way, file, cache))
    if len({one["digest"] for way in WAYS for one in found[way]}) > 1:
        raise ValueError("the ways read different records; nothing is written")
    return {
        "records": records,
        "bytes": size,
        "rounds": rounds,
        "ways": {way: medians(found[way]) for way in WAYS},
        "ratios": {way: ratio(found[way], found["list"]) for way in WAYS[1:]},
    }


def told(table: Mapping[str, Any]) -> list[str]:
    """The table for a terminal."""
    lines = [f"{table['records']:,} records, {table['bytes'] / MB:,.0f} MB, {table['rounds']} rounds"]
    for way, row in table["ways"].items():
        of = table["ratios"].get(way)
        over = f"  {of['value']:.3f} x list [{of['low']:.3f}, {of['high']:.3f}]" if of else ""
        start = f"{way:6} {row['cpu_seconds']:8.2f} CPU s ({row['seconds']:.2f} s)"
        each = f"{row['microseconds_a_read']:6.1f} µs a record read"
        lines.append(f"{start}  {row['memory_mb']:8.0f} MB over imports  {each}{over}")
    return lines


def synthesised(folder: Path, records: int) -> Path:
    """A record file: nine records of ten name one of `IMAGES` small images and are labelled; one or two questions."""
    for index in range(IMAGES):
        Image.new("RGB", (8, 8), (index, index, index)).save(folder / f"{index}.png")
    rng = random.Random(0)
    file = folder / "train.jsonl"
    with file.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(_row(index, rng)) + "\n" for index in range(records))
    return file


def _row(index: int, rng: random.Random) -> dict[str, Any]:
    image = {"image": f"{index % IMAGES}.png"} if index % 10 else {}
    label = (CLEAN, SAFE) if index % 3 else (DEFAULT.category_names[0], DEFAULT.level_names[1])
    talk = []
    for turn in range(rng.choice((1, 1, 1, 2))):
        slot = "<image>\n" if image and not turn else ""
        talk.append({"from": "human", "value": slot + _words(rng, 6, 20)})
        talk.append({"from": "gpt", "value": _words(rng, 20, 70)})
    return {"id": f"{index:08d}", **image, "safe_type": label[0], "safe_level": label[1], "conversations": talk}


def _words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every number that the rows have."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in names}


def ratio(rows: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """CPU seconds over the peer's, round by round: the median, with its 95 % interval."""
    ratios = [ours["cpu_seconds"] / peer["cpu_seconds"] for ours, peer in zip(rows, peers, strict=True)]
    low, high = bootstrap_median(ratios, seed=0)
    return {"value": statistics.median(ratios), "low": low, "high": high}


def in_fresh_process(module: str, way: str, place: Path, cache: Path) -> dict[str, Any]:
    """What `module`, run as a script on a way and a place, prints. ValueError: it failed."""
    command = [sys.executable, "-m", module, way, str(place)]
    done = subprocess.run(command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{way}: the process failed: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def metered(work: Callable[[], Made]) -> tuple[Made, dict[str, float]]:
    """What `work` gives; its CPU seconds with those of its processes, seconds, and this process's memory in MB."""
    before, clock, cpu = _peak_mb(), time.perf_counter(), _cpu_seconds()
    made = work()
    seconds, cpu_seconds = time.perf_counter() - clock, _cpu_seconds() - cpu
    peak = _peak_mb()
    return made, {"cpu_seconds": cpu_seconds, "seconds": seconds, "memory_mb": peak - before, "peak_mb": peak}


def _measured(way: str, file: Path) -> dict[str, Any]:
    read: Callable[..., Sequence[Record]] = read_records if way == "list" else open_records
    records, told = metered(lambda: read([file], DEFAULT))
    cpu, texts = time.process_time(), list(_some(records))
    each = (time.process_time() - cpu) / len(texts)
    return {**told, "microseconds_a_read": each * 1e6, "digest": bytes_digest("\n".join(texts).encode())}


def _some(records: Sequence[Record]) -> Iterator[str]:
    rng = random.Random(1)
    yield from (repr(records[rng.randrange(len(records))]) for _ in range(READS))


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mb() -> float:
    """Of this process: `ru_maxrss` would count the parent's, which is copied when the process starts."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1], Path(sys.argv[2]))))
