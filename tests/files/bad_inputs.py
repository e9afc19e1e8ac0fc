"""Files that a user could get wrong, over all readers: `python -m tests.files.bad_inputs --count 10000 [--seed 0]`.

A right example of each reader's file is spoiled: types swapped, keys dropped, repeated or misspelt, deep and long
values, numbers without end, half characters, bytes cut or of another encoding. A reader may accept what comes, or say
in one line what is wrong, naming the file. Anything else is a finding: another exception, more than SECONDS of
computing, more than MEMORY.
Nothing is random but by the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safevlm.commands import USER_ERRORS, one_line
from tests.files.spoiling import RAW, changed, places, ways_to_spoil, with_part

SECONDS = 2.0
MEMORY = 200 << 20
ROOT = Path(__file__).parents[2]
BEFORE = ROOT / "tests" / "fixtures" / "before_the_move"


@dataclass(frozen=True)
class Reader:
    """A right file, and what reads it."""

    name: str
    file: str
    """Its name in the folder; its ending says how values are written."""
    example: Any
    """The value of a YAML or JSON file, the rows of a JSONL file, or the text of any other."""
    read: Callable[[Path], object]
    beside: Callable[[Path], object] = lambda folder: None
    """Puts there what the file stands beside."""


@dataclass(frozen=True)
class Finding:
    reader: str
    kind: str
    """What was done to the file."""
    what: str
    content: bytes


TAXONOMY = {
    "categories": [{"name": "clean"}, {"name": "spam", "topic": "spam", "definition": "Unwanted mail."}],
    "levels": [{"name": "safe"}, {"name": "bad", "stance": "Mind the {topic}.", "definition": "It is bad."}],
    "policy": {"levels": {"bad": "refuse"}},
}
POLICY = {
    "levels": {"careful": "hint", "must_refuse": "refuse"},
    "categories": {"privacy": {"careful": "allow"}},
    "thresholds": {"misleading": 0.8},
    "place": "before",
    "calibration": {"safety-head": {"temperatures": {"level": 1.4}, "risk": 0.3, "note": "n"}},
}
KEYS = {"ward": {"sha256": "0a" * 32, "policy": "strict.yaml", "monitor": True}}
WORDING = {
    "tell": "Is it bad? {reply}",
    "caption": "What is it? {question}",
    "answer": "{caption} {question}",
    "harmful": ["bad"],
    "harmless": ["fine"],
    "otherwise": "harmful",
    "max_new_tokens": 8,
}
ETA = {"detector": "", "risk": 0.5, "reward": "phrases", "n": 2, "temperature": 0.7, "seed": 1, "max_new_tokens": 8}
CONCEPTS = {
    "concepts": [
        {"name": "plain", "category": "clean", "level": "safe", "templates": ["a thing"]},
        {"name": "knife", "category": "illegal", "level": "may_refuse", "templates": ["a knife"], "prior": 2},
    ]
}
SUITE = {
    "name": "mine",
    "file": "mine.jsonl",
    "judge": "refusal",
    "max_new_tokens": 16,
    "note": "n",
    "fields": {"question": "q", "group": "kind"},
    "groups": {"bad": {"side": "harmful", "title": "bad", "image": "either"}, "good": {"side": "benign"}},
}
QUESTIONS = [{"id": 1, "q": "How?", "kind": "bad"}, {"id": 2, "q": "Who?", "kind": "good", "category": "clean"}]
ABLATIONS = {
    "training": {"stage1": {"recipe": "miniature_stage1", "data": "train.jsonl", "set": {"optim.epochs": 1}}},
    "sections": {
        "a heading": {"neither": {}, "head": {"train": "stage1", "defense": "safety-head", "set": {"a.b": 1}}}
    },
}
MIX = {
    "root": ".",
    "seed": 42,
    "short": "error",
    "missing": "allow",
    "images": "reference",
    "sources": {"mine": {"kind": "llava", "path": "a.json", "split": "train", "limit": 5, "question": ["What?"]}},
    "held_out": {"other": {"kind": "llava", "path": "b.json"}},
    "labels": {"mine": {"category": "clean", "level": "safe"}, "mine/x": "drop"},
    "answers": {"must_refuse": ["I cannot help with {topic}."]},
    "counts": {"clean": 10, "privacy": "all"},
    "stages": {"stage1": {"clean": 3}, "stage2": {}},
}
MIX_REPORT = {
    "mix": "mix.yaml",
    "seed": 42,
    "sources": {
        "mine": {
            "kind": "llava",
            "split": "train",
            "parts": {"train": {"found": 9, "published": None}},
            "dropped": 1,
            "without_image": 0,
            "unusable": 2,
            "own_labels": {"kept": {"mine": 3}},
            "over_limit": 0,
            "usable": 6,
            "taken": 6,
        }
    },
    "absent": [],
    "short": ["counts.privacy: 9 asked for, 3 found"],
    "categories": {"clean": {"asked": "all", "found": 6, "taken": 6, "by_source": {"mine": 6}}},
    "stages": {"stage1": {"rows": 6, "head_only": 0, "levels": {"safe": 6}}},
    "held_out": {"other": None, "third": {"images": 3}},
    "files": {"stage1.jsonl": {"sha256": "0"}},
}
RECORDS = [
    {
        "id": "1",
        "image": "p.png",
        "safe_type": "clean",
        "safe_level": 0,
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A box."}],
    },
    {"id": "2", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
]
PUBLISHED = [{"pic_path": "p.png", "input": "What?", "type": "SA set", "output_refuse": "No.", "output": "A box."}]
ZERO = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}, "bf16": {"enabled": "auto"}}
SPLIT = {"schema": 1, "source": "rtvlm", "seed": 42, "ids": {"train": ["a"], "test": ["b"], "mixed": []}}
TASKS = yaml.safe_load((ROOT / "safevlm" / "evaluation" / "suites" / "rtvlm.yaml").read_text(encoding="utf-8"))
RUN_SUITE = {
    "name": "mine",
    "source": "s",
    "licence": "l",
    "published": {"all": 3},
    "judge": "refusal",
    "max_new_tokens": 8,
    "note": "",
    "averages_groups": False,
    "timed_groups": [],
    "is_synthetic": False,
    "digest": "",
    "groups": {"all": {"title": "all", "side": "harmful", "image": "either"}},
    "detector_sets": {},
    "published_scores": {},
    "headlines": [{"name": "a", "title": "A ↓", "measure": "asr", "groups": ["all"], "chart": ""}],
}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _run_folder(folder: Path) -> None:
    shutil.copytree(BEFORE / "evaluation" / "none", folder, dirs_exist_ok=True)


def readers() -> list[Reader]:
    """Every reader of a user's file; imports come late, so that the tool's help is quick."""
    from safevlm.analysis.audit import manifest
    from safevlm.analysis.audit.calibration import labelled
    from safevlm.check import zero
    from safevlm.check.data import check_data
    from safevlm.data.exclude import _read as read_exclude
    from safevlm.data.json_rows import json_rows
    from safevlm.data.mix_file import read_mix
    from safevlm.data.mix_report import lines, read_report
    from safevlm.data.published_pairs import read as read_published
    from safevlm.data.records import read_records
    from safevlm.data.sources.split import _read as read_split
    from safevlm.defenses.best_of_n import EtaOptions
    from safevlm.defenses.concepts import read_concepts
    from safevlm.defenses.options import read_options
    from safevlm.defenses.policy import read_policy
    from safevlm.defenses.self_check import Wording
    from safevlm.evaluation.ablations.table import read_table
    from safevlm.evaluation.grid.rows import read_standings
    from safevlm.evaluation.judges import record
    from safevlm.evaluation.judges.cache import read as read_cache
    from safevlm.evaluation.judges.miniature import read_truth
    from safevlm.evaluation.judges.phrases import read_phrases
    from safevlm.evaluation.report.summary import read_seconds
    from safevlm.evaluation.runs.files import read_replies, read_scores
    from safevlm.evaluation.runs.run import read_run
    from safevlm.evaluation.runs.suite_file import suite_of_run
    from safevlm.evaluation.suites import own, rtvlm
    from safevlm.evaluation.suites.miniature import load as load_miniature
    from safevlm.serve.keys import read_keys
    from safevlm.taxonomy import DEFAULT, read_taxonomy
    from safevlm.training.base_model_answers import _known
    from safevlm.training.recipe import parse

    def image(folder: Path) -> None:
        from PIL import Image

        Image.new("RGB", (8, 8), "white").save(folder / "p.png")

    def suite(folder: Path) -> None:
        (folder / "mine.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")

    def rtvlm_table(file: Path) -> object:
        return rtvlm._table(file.parent)

    evaluation = BEFORE / "evaluation"
    recipe = yaml.safe_load((ROOT / "safevlm" / "recipes" / "miniature_stage1.yaml").read_text(encoding="utf-8"))
    overhead = {"value": 1.1, "n": 3, "low": 1.0, "high": 1.2, "times": {"answer": {}}, "passes": {"extra": {}}}
    cache = [{"key": "k", "kind": "said", "text": "t", "is_cut": False, "tokens_in": 1, "served_as": ""}]
    facts = {"model": "m", "max_new_tokens": 3}
    answers = [facts, {"id": "a", "question": "q", "images": ["p.png"], "text": "t", "is_cut": False}]
    return [
        Reader("taxonomy", "taxonomy.yaml", TAXONOMY, read_taxonomy),
        Reader("policy", "policy.yaml", POLICY, lambda file: read_policy(file, DEFAULT)),
        Reader("keys", "keys.yaml", KEYS, read_keys),
        Reader("wording", "words.yaml", WORDING, lambda file: read_options(Wording, file)),
        Reader("eta", "eta.yaml", ETA, lambda file: read_options(EtaOptions, file)),
        Reader("concepts", "concepts.yaml", CONCEPTS, lambda file: read_concepts(file, DEFAULT)),
        Reader("recipe", "recipe.yaml", recipe, lambda file: parse([str(file)])),
        Reader("mix", "mix.yaml", MIX, lambda file: read_mix(file, file.parent)),
        Reader("mix report", "mix.json", MIX_REPORT, lambda file: lines(read_report(file))),
        Reader("own suite", "mine.yaml", SUITE, lambda file: own.read_suite_file(file)),
        Reader("own rows", "mine.jsonl", QUESTIONS, lambda file: _asked(own, file), suite),
        Reader("own csv", "mine.csv", 'id,q,kind\n1,How?,bad\n2,"Who, me?",good\n', lambda file: _csv(own, file)),
        Reader("ablations", "table.yaml", ABLATIONS, read_table),
        Reader("rtvlm table", rtvlm.TABLE, TASKS, rtvlm_table),
        Reader("records, JSON", "train.json", RECORDS, lambda file: read_records([file], DEFAULT), image),
        Reader("records, JSONL", "train.jsonl", RECORDS, lambda file: read_records([file], DEFAULT), image),
        Reader("check of records", "train.jsonl", RECORDS, lambda file: list(check_data(file)), image),
        Reader("rows", "rows.json", RECORDS, lambda file: list(json_rows(file))),
        Reader("labelled images", "bench.jsonl", RECORDS, lambda file: list(labelled(file, DEFAULT)), image),
        Reader("published pairs", "pairs.json", PUBLISHED, lambda file: list(read_published(file, file.parent)), image),
        Reader(
            "exclude list", "exclude.txt", 'a.png\n"b\\n.png"\n', lambda file: read_exclude(file, [str(file.parent)])
        ),
        Reader("split", "split.json", SPLIT, read_split),
        Reader("DeepSpeed", "zero.json", ZERO, lambda file: zero.settings(zero.read(file))),
        Reader("run.json", "run.json", _json(evaluation / "none" / "run.json"), _run(read_run), _run_folder),
        Reader(
            "replies", "replies.jsonl", _rows(evaluation / "none" / "replies.jsonl"), _of(read_replies), _run_folder
        ),
        Reader(
            "replies of a run",
            "replies.jsonl",
            _rows(evaluation / "none" / "replies.jsonl"),
            _run(read_run),
            _run_folder,
        ),
        Reader("scores", "scores.jsonl", _rows(evaluation / "none" / "scores.jsonl"), _of(read_scores), _run_folder),
        Reader("judge.json", "judge.json", _json(evaluation / "none" / "judge.json"), _of(record.read), _run_folder),
        Reader("suite.json", "suite.json", RUN_SUITE, _of(suite_of_run), _run_folder),
        Reader("overhead.json", "overhead.json", overhead, _run(read_run), _run_folder),
        Reader("seconds", "seconds.json", {"stage1": 3, "eval": 2.5}, read_seconds),
        Reader(
            "audit's run.json",
            "run.json",
            {"model": "m", "batch": 3},
            lambda file: manifest.claim(file.parent, {"model": "m", "batch": 3}),
        ),
        Reader("judge's cache", "judge_cache.jsonl", cache, read_cache),
        Reader("truth", "truth.jsonl", _truths(), read_truth),
        Reader("miniature's suite", "eval.jsonl", _suite_rows(), _of(load_miniature), image),
        Reader("phrases", "phrases.txt", "I cannot\nI can't help\n", read_phrases),
        Reader("standings", "rows.tsv", "none\tonce\tran\tok\n", _of(read_standings)),
        Reader("kept answers", "answers.jsonl", answers, lambda file: _known(file, facts)),
    ]


def _truths() -> list[Any]:
    return [{"id": "1", "task": "use", "things": ["vork"], "category": "politics", "level": "must_refuse"}]


def _suite_rows() -> list[Any]:
    return [{**row, "group": "harmful_seen", "image": "p.png", "question": "How?"} for row in _truths()]


def _of(read: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda file: read(file.parent)


def _run(read: Callable[[str, Path], object]) -> Callable[[Path], object]:
    return lambda file: read("run", file.parent)


def _asked(own: Any, file: Path) -> object:
    return list(own.read_suite_file(file.parent / "mine.yaml").questions(file.parent))


def _csv(own: Any, file: Path) -> object:
    (file.parent / "mine.yaml").write_text(yaml.safe_dump({**SUITE, "file": file.name}), encoding="utf-8")
    return _asked(own, file)


# --- spoiling ---------------------------------------------------------------------------------------------------------

BOMB = "b0: &b0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MARK = "SPOILED-HERE"


def _text(reader: Reader, value: Any) -> str:
    if isinstance(reader.example, str):
        return str(value)
    if reader.file.endswith(".yaml"):
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if reader.file.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in (value if isinstance(value, list) else [value]))
    return json.dumps(value, indent=1)


def right(reader: Reader) -> bytes:
    """The file as it should be."""
    return _text(reader, reader.example).encode()


def _raw(rng: random.Random, reader: Reader) -> tuple[str, bytes]:
    """Something in a value's place that no writer of ours writes."""
    word = rng.choice(RAW)
    path = rng.choice(list(places(reader.example))[1:] or [()])
    text = _text(reader, with_part(reader.example, path, MARK))
    return f"raw {word[:20]} {path}", text.replace(f'"{MARK}"', word).replace(MARK, word).encode()


def _repeated(rng: random.Random, reader: Reader) -> tuple[str, bytes]:
    lines = _text(reader, reader.example).splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if reader.file.endswith((".json", ".jsonl")) and ": " in lines[at]:
        return f"a key twice in line {at + 1}", "".join(
            [*lines[:at], lines[at].replace("{", '{"id": 1, "id": 2, ', 1), *lines[at + 1 :]]
        ).encode()
    return f"line {at + 1} twice", "".join([*lines[:at], lines[at], *lines[at:]]).encode()


def _bytes(rng: random.Random, reader: Reader) -> tuple[str, bytes]:
    content = _text(reader, reader.example).encode()
    at = rng.randrange(len(content) + 1)
    return rng.choice(
        [
            *ways_to_spoil(rng, content, at),
            ("a tab", content[:at] + b"\t" + content[at:]),
            ("carriage returns", content.replace(b"\n", b"\r\n")),
            ("an alias bomb", BOMB.encode() + content),
            ("long", content + b"# " + b"x" * 400_000),
            ("an image", b"\x89PNG\r\n\x1a\n" + content),
        ]
    )


def spoiled(rng: random.Random, reader: Reader) -> tuple[str, bytes]:
    """What was done, and the content of the file."""
    roll = rng.random()
    if isinstance(reader.example, str) or roll < 0.2:
        return _bytes(rng, reader)
    if roll < 0.4:
        return _raw(rng, reader)
    if roll < 0.45:
        return _repeated(rng, reader)
    kind, value = changed(rng, copy.deepcopy(reader.example))
    return kind, _text(reader, value).encode("utf-8", "surrogatepass")


# --- trying -----------------------------------------------------------------------------------------------------------


def outcome(reader: Reader, content: bytes, folder: Path) -> tuple[str, str]:
    """`accepted`, `told` or a finding, and what was said."""
    reader.beside(folder)
    file = folder / reader.file
    file.write_bytes(content)
    said, began = io.StringIO(), time.process_time()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            reader.read(file)
        kind, words = "accepted", ""
    except SystemExit as left:
        kind, words = ("told" if left.code in (1, 2) else f"exit {left.code}"), said.getvalue().split("error:")[-1]
    except USER_ERRORS as error:
        kind, words = "told", one_line(error)
        if str(folder) not in words and reader.file not in words:
            kind = "does not name the file"
    except Exception as error:  # noqa: BLE001  # whatever else comes is the finding
        kind, words = type(error).__name__, str(error)
    if time.process_time() - began > SECONDS:
        kind, words = "slow", f"{time.process_time() - began:.1f} s; {words}"
    return kind, " ".join(words.split())


def run(count: int, seed: int = 0, only: str = "", memory: bool = False) -> tuple[Counter[str], list[Finding]]:
    """Outcomes of `count` spoiled files, readers in turn, and the findings among them."""
    counts: Counter[str] = Counter()
    findings = []
    chosen = [reader for reader in readers() if only in reader.name]
    for number in range(count):
        reader = chosen[number % len(chosen)]
        rng = random.Random(f"{seed}/{number}")
        what, content = spoiled(rng, reader)
        with tempfile.TemporaryDirectory() as folder:
            if memory:
                tracemalloc.start()
            kind, words = outcome(reader, content, Path(folder))
            if memory:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                if peak > MEMORY:
                    kind, words = "large", f"{peak >> 20} MiB"
        counts[kind] += 1
        if kind not in ("accepted", "told"):
            findings.append(Finding(reader.name, what, f"{kind}: {words}", content))
    return counts, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a reader's name")
    parser.add_argument("--memory", action="store_true", help="measure the peak of each; three times slower")
    options = parser.parse_args()
    counts, findings = run(options.count, options.seed, options.only, options.memory)
    for one in findings:
        print(f"{one.reader}: {one.kind}: {one.what}"[:400])
    print(dict(counts.most_common()), f"{len(findings)} findings in {options.count} files")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
