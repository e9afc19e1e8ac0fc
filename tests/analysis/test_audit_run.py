"""A whole audit on a tiny random model: resumable, the same in one process or several, and never with the LLM."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from safevlm.__main__ import main
from safevlm.analysis.audit import run
from safevlm.analysis.audit.gallery import thumbnail
from safevlm.analysis.audit.plan import PlacedItem
from safevlm.analysis.audit.risk_classifier import RiskClassifier
from safevlm.analysis.audit.run import AuditSettings, audit
from safevlm.analysis.audit.shards import Shards
from safevlm.analysis.audit.sources import Item
from safevlm.config import SafetyConfig
from safevlm.data.exclude import line_of
from safevlm.engine import Engine
from safevlm.miniature import contamination
from safevlm.model import loading
from safevlm.taxonomy import CLEAN, DEFAULT
from safevlm.types import Request
from tests import forked, patience, tiny
from tests.holding import holding
from tests.training import workshop

N = 60
RESULTS = ("audit.parquet", "exclude.txt", "unreadable.jsonl", "summary.json", "gallery.html")


def _model(folder: Path, **safety: Any) -> Path:
    """A complete checkpoint with a random head whose verdicts hang on the image."""
    torch.manual_seed(0)
    base = workshop.stock_folder(folder / "base")
    loaded = loading.load(base, safety=SafetyConfig(**{**tiny.SAFETY, **safety}))
    tiny.shake(loaded.model.safety_head, std=0.25)
    tiny.shake(loaded.model.safety_projector, std=0.15)
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `data/images`, `data/truth.jsonl`, `data/calibration`. Two images are broken. Read only."""
    home = tmp_path_factory.mktemp("audit")
    _model(home)
    contamination.write(home / "data", contamination.ContaminationConfig(n=N, risky=0.3, copies=0.1, calibration=200))
    first, second, *_ = sorted((home / "data" / "images" / "00").iterdir())
    first.write_bytes(b"")
    second.write_bytes(b"this is text")
    return home


def _settings(home: Path, out: Path, **changes: Any) -> AuditSettings:
    fields = {
        "data": home / "data" / "images",
        "model": str(home / "model"),
        "out": out,
        "device": "cpu",
        "batch_size": 8,
        "workers": 2,
        "threads": 1,
        "shard_size": 16,
    }
    return AuditSettings(**{**fields, **changes})


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    audit(_settings(home, out))
    return out


def _results(out: Path) -> dict[str, bytes]:
    found = {name: (out / name).read_bytes() for name in RESULTS}
    summary = json.loads(found["summary.json"])
    del summary["made_by"]["command"]  # several processes, or a second start, are other commands
    return found | {"summary.json": json.dumps(summary).encode()}


def _rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "audit.parquet").to_pylist()


def test_every_image_is_in_the_result_once_and_in_order(home: Path, whole: Path) -> None:
    rows = _rows(whole)
    names = sorted(
        path.relative_to(home / "data" / "images").as_posix() for path in (home / "data" / "images").rglob("*.*")
    )
    assert [row["path"] for row in rows] == names and [row["index"] for row in rows] == list(range(N))
    probabilities = [value for key, value in rows[5].items() if key.startswith("category_")]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_unreadable_images_are_listed_and_end_nothing(whole: Path) -> None:
    broken = [json.loads(line) for line in (whole / "unreadable.jsonl").read_text().splitlines()]
    assert [row["path"] for row in broken] == [row["path"] for row in _rows(whole)[:2]]
    assert "empty" in broken[0]["error"] and "not an image" in broken[1]["error"]
    rows = _rows(whole)
    assert rows[0]["category"] is None and rows[0]["category_clean"] is None and rows[0]["exact_group"] is None
    assert json.loads((whole / "summary.json").read_text())["unreadable"] == 2


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_data_of_which_nothing_can_be_read_are_a_failure(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_bytes(b"no archive")
    assert main(["audit", str(tmp_path / name), "--model", str(home / "model"), "--out", str(tmp_path / "out")]) == 1
    said, error = capsys.readouterr()
    assert "done" not in said and f"{tmp_path / name}: nothing in it can be read" in error.splitlines()[-1]


def test_data_of_which_a_part_can_be_read_are_a_result_that_counts_the_rest(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(sorted((home / "data" / "images" / "00").iterdir())[2], tmp_path / "data")
    (tmp_path / "data" / "broken.tar").write_bytes(b"no archive")
    words = [str(tmp_path / "data"), "--model", str(home / "model"), "--out", str(tmp_path / "out")]
    assert main(["audit", *words]) == 0
    assert "2 images, 1 unreadable" in capsys.readouterr().out


def test_verdicts_are_those_of_chat(home: Path, whole: Path) -> None:
    engine = Engine.load(home / "model", device="cpu")
    for row in _rows(whole)[2:12]:
        verdict = engine.look(Request("What is this?", images=(row["file"],)))
        assert row["category_clean"] == pytest.approx(verdict.category_probabilities["clean"], abs=1e-5)
        expected = ("clean", "safe") if verdict.is_clean else (verdict.category, verdict.level)
        assert (row["category"], row["level"]) == expected


def test_the_llm_is_never_loaded(home: Path) -> None:
    classifier = RiskClassifier.load(home / "model", device=torch.device("cpu"))
    assert not [name for name, _ in classifier.model.named_parameters() if "language_model.layers" in name]


def test_copies_are_grouped(home: Path, whole: Path) -> None:
    truths = [json.loads(line) for line in (home / "data" / "truth.jsonl").read_text().splitlines()]
    rows = _rows(whole)
    place = {row["path"]: row for row in rows}
    copies = [truth for truth in truths if truth["image"] != truth["group"]]
    assert copies
    for truth in copies:
        copy, original = (place[truth[key].removeprefix("images/")] for key in ("image", "group"))
        if original["error"]:
            continue
        assert copy["near_group"] == original["near_group"] is not None
        is_same_file = copy["sha256"] == original["sha256"]
        assert is_same_file == (copy["exact_group"] is not None and copy["exact_group"] == original["exact_group"])


def test_an_interrupted_audit_goes_on_to_the_identical_result(
    home: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Shards.write

    def breaking(self: Shards, shard: int, rows: Any) -> None:
        if shard == 2 and len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, rows)

    monkeypatch.setattr(Shards, "write", breaking)
    with pytest.raises(KeyboardInterrupt):
        audit(_settings(home, tmp_path / "out"))
    written.append(-1)
    assert not (tmp_path / "out" / "audit.parquet").exists()
    outcome = audit(_settings(home, tmp_path / "out"))
    assert written == [0, 1, -1, 2, 3] and outcome.scanned == N - 32, "finished shards are not made again"
    assert _results(tmp_path / "out") == _results(whole)
    assert audit(_settings(home, tmp_path / "out")).scanned == 0


def test_an_audit_begun_by_an_earlier_version_goes_on(home: Path, whole: Path, tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "parts").mkdir()
    for file in (out / "shards").iterdir():
        file.rename(out / "parts" / file.name.replace("shard", "part"))
    (out / "shards").rmdir()
    (out / "parts" / "part-000002.parquet").unlink()
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    del record["fingerprint_gap"]
    (out / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert audit(_settings(home, out)).scanned == 16, "only the shard that is missing"
    assert "without fingerprint_gap" in caplog.text
    assert not (out / "shards").exists() and _results(out) == _results(whole)


def test_several_processes_give_the_result_of_one(home: Path, whole: Path, tmp_path: Path) -> None:
    outcomes = [audit(_settings(home, tmp_path, shard=f"{number}/3")) for number in (3, 1, 2)]
    assert [outcome.summary is not None for outcome in outcomes] == [False, False, True], "the last one merges"
    assert sum(outcome.scanned for outcome in outcomes) == N
    assert _results(tmp_path) == _results(whole)


def test_batches_do_not_depend_on_how_many_threads_decode(home: Path, whole: Path, tmp_path: Path) -> None:
    audit(_settings(home, tmp_path, workers=5))
    assert _results(tmp_path) == _results(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 4}, "batch_size: 8, now 4"),
        ({"shard_size": 8}, "shard_size: 16, now 8"),
        ({"threads": 2}, "threads: 1, now 2"),
        ({"data": "data/calibration"}, "data_digest"),
    ],
)
def test_parts_of_two_settings_never_meet(home: Path, whole: Path, change: dict[str, Any], named: str) -> None:
    before = _results(whole)
    change = {key: home / value if key == "data" else value for key, value in change.items()}
    with pytest.raises(ValueError, match=named):
        audit(_settings(home, whole, **change))
    assert _results(whole) == before


def test_another_model_is_refused(home: Path, whole: Path, tmp_path: Path) -> None:
    other = _model(tmp_path, projector_width=20)
    with pytest.raises(ValueError, match="model_digest"):
        audit(_settings(home, whole, model=str(other)))


def test_threshold_and_policy_are_changed_without_looking_again(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(_settings(home, out))
    flagged = {}
    low, high = np.quantile([row["risk"] for row in _rows(out)[2:]], [0.2, 0.8]).tolist()
    for threshold in (high, low):
        outcome = audit(_settings(home, out, threshold=threshold))
        assert outcome.scanned == 0
        flagged[threshold] = {row["path"] for row in _rows(out) if row["action"] not in ("", "allow")}
        risks = [row["risk"] for row in _rows(out) if row["risk"] is not None]
        assert len(flagged[threshold]) == sum(risk >= threshold for risk in risks)
    assert flagged[low] > flagged[high]
    found = {row["category"] for row in _rows(out)} - {None, "clean"}
    levels = ("careful", "may_refuse", "must_refuse")
    silent = {name: dict.fromkeys(levels, "allow") for name in found}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"categories": silent}))
    audit(_settings(home, out, threshold=low, policy=str(tmp_path / "policy.yaml")))
    assert (out / "exclude.txt").read_text() == ""


def test_the_exclusion_list_holds_the_flagged_files(whole: Path) -> None:
    listed = (whole / "exclude.txt").read_text().splitlines()
    rows = [row for row in _rows(whole) if row["action"] not in ("", "allow")]
    assert listed == [row["file"] for row in rows] and listed
    assert all(Path(path).is_file() for path in listed)
    assert line_of("a\nb.png") == '"a\\nb.png"\n'


def test_a_calibration_corrects_the_counts(home: Path, tmp_path: Path) -> None:
    audit(_settings(home, tmp_path, calibration=home / "data" / "calibration" / "truth.jsonl"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    total = sum(count["value"] for count in summary["estimate"]["categories"].values())
    assert total == pytest.approx(N - 2, abs=1), "unreadable images are nobody's"
    assert all(one["low"] <= one["value"] <= one["high"] for one in summary["estimate"]["categories"].values())


def test_a_calibration_with_a_broken_or_unknown_row_names_it(home: Path, whole: Path, tmp_path: Path) -> None:
    for row, told in (
        ({"image": "gone.png", "safe_type": 1}, "no such image"),
        ({"image": "gone.png", "safe_type": "vice"}, "vice"),
        ({"image": "gone.png"}, "no row with an image and a label"),
    ):
        (tmp_path / "labels.jsonl").write_text(json.dumps(row))
        with pytest.raises(ValueError, match=told):
            audit(_settings(home, whole, calibration=tmp_path / "labels.jsonl"))


def test_the_gallery_is_one_file_that_loads_nothing_and_runs_nobodys_code(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    name = '"><img src=x onerror=alert(1)>.png'
    (folder / name).write_bytes((home / "data" / "images" / "00" / "00005.png").read_bytes())
    audit(_settings(home, tmp_path / "out", data=folder, threshold=1e-6))
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "http" not in page.replace("http-equiv", "") and page.count("data:image/") == 1
    assert "filter: blur" in page and 'class="veil"' in page and "default-src 'none'" in page


@pytest.mark.parametrize("top", [0, 1, 3])
def test_the_gallery_shows_the_surest_of_each_category(home: Path, whole: Path, tmp_path: Path, top: int) -> None:
    audit(_settings(home, tmp_path, top=top))
    page = (tmp_path / "gallery.html").read_text()
    for name in {row["category"] for row in _rows(whole)} - {None, "clean"}:
        rows = [row for row in _rows(whole) if row["category"] == name and row["action"] != "allow"]
        rows.sort(key=lambda row: (-row[f"category_{name}"], row["index"]))
        assert all((f">{row['path']}<" in page) == (at < top) for at, row in enumerate(rows))
        for row in rows[:top]:
            uri = thumbnail(PlacedItem(0, 0, Item(0, row["path"], file=row["file"])))
            assert uri and f'src="{uri}"' in page, "a card must show its own image"


def test_a_head_that_reads_text_is_asked_one_question(home: Path, tmp_path: Path) -> None:
    model = _model(tmp_path, reads_text=True)
    audit(_settings(home, tmp_path / "out", model=str(model)))
    engine = Engine.load(model, device="cpu")
    for row in _rows(tmp_path / "out")[2:6]:
        verdict = engine.look(Request("What is in the picture?", images=(row["file"],)))
        assert row["category_clean"] == pytest.approx(verdict.category_probabilities["clean"], abs=1e-5)
    with pytest.raises(ValueError, match="question"):
        audit(_settings(home, tmp_path / "out", model=str(model), question="Why?"))


def test_a_model_without_a_head_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no safety head"):
        audit(_settings(home, tmp_path, model=str(home / "base")))


def test_the_speed_is_compared_in_the_same_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safevlm.analysis.audit.bench.ROUNDS", 1)
    outcome = audit(_settings(home, tmp_path, bench=True))
    assert outcome.bench is not None and outcome.bench["images"] == N - 2
    assert set(outcome.bench["per_second"]) == {"tower", "judge", "read tower", "audit"}
    written = json.loads((tmp_path / run.BENCH).read_text())
    assert written.pop("made_by")["digests"]["model"] and written == outcome.bench


def test_the_command_prints_what_it_found(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = _words(home, tmp_path / "out")
    assert main([*words, "--threshold", "0.3"]) == 0
    said = capsys.readouterr().out
    assert f"{N} images scanned" in said and "2 unreadable" in said and "not corrected" in said
    with pytest.raises(SystemExit) as left:
        main([*words, "--threshold", "2"])
    assert left.value.code == 2 and "--threshold: '2'" in capsys.readouterr().err


def _words(home: Path, out: Path) -> list[str]:
    return [
        "audit",
        str(home / "data" / "images"),
        "--model",
        str(home / "model"),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--batch-size",
        "8",
        "--workers",
        "2",
        "--threads",
        "1",
        "--shard-size",
        "16",
    ]


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_spoils_the_result(home: Path, whole: Path, tmp_path: Path) -> None:
    def finished() -> int:
        return len(list((tmp_path / "shards").glob("shard-*"))) if (tmp_path / "shards").is_dir() else 0

    process = forked.command(_words(home, tmp_path))
    patience.wait_until(lambda: finished() >= 1 or process.poll() is not None, process.pid)
    process.kill()
    process.wait()
    (tmp_path / "shards" / ".shard-000003.parquet.123").write_bytes(b"half a shard")
    assert main(_words(home, tmp_path)) == 0
    assert _results(tmp_path) == _results(whole)


@pytest.mark.slow
def test_two_processes_at_once_give_the_result_of_one(home: Path, whole: Path, tmp_path: Path) -> None:
    """As torchrun starts them."""
    forked.together(2, forked.run_command, [_words(home, tmp_path / "out")], tmp_path)
    assert _results(tmp_path / "out") == _results(whole)


@pytest.mark.slow
def test_two_tasks_of_an_array_over_tars_give_the_result_of_one_process(home: Path, tmp_path: Path) -> None:
    """The body of the sbatch script, as SLURM starts it twice at once."""
    root, data = Path(__file__).parents[2], tmp_path / "data"
    data.mkdir()
    files = sorted((home / "data" / "images").rglob("*.*"))
    for number in range(3):
        with tarfile.open(data / f"{number:05}.tar", "w") as archive:
            for file in files[number::3]:
                archive.add(file, file.name)
    command = tmp_path / "bin" / "safevlm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m safevlm "$@"\n')
    command.chmod(0o755)
    _, _, _, model, _, out, *flags = _words(home, tmp_path / "two")
    environment = {
        "PATH": os.pathsep.join([str(command.parent), os.environ["PATH"]]),
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_COUNT": "2",
    }
    words = ["bash", "scripts/slurm/audit.sbatch", str(data), model, out, *flags]
    both = [patience.start(words, root, **environment, SLURM_ARRAY_TASK_ID=str(number)) for number in (0, 1)]
    assert [patience.finish(process) for process in both] == [0, 0]
    audit(_settings(home, tmp_path / "one", data=data))
    assert _results(tmp_path / "two") == _results(tmp_path / "one")
    assert len(_rows(tmp_path / "two")) == N


def test_the_contaminated_set_holds_exactly_what_was_asked_for(home: Path) -> None:
    truths = [json.loads(line) for line in (home / "data" / "truth.jsonl").read_text().splitlines()]
    originals = [truth for truth in truths if truth["image"] == truth["group"]]
    assert len(truths) == N and len(originals) == N - round(N * 0.1)
    clean = DEFAULT.category_id(CLEAN)
    assert sum(truth["safe_type"] != clean for truth in originals) == round(N * 0.3)
    assert all((home / "data" / truth["image"]).is_file() for truth in truths)
    labels = {truth["image"]: (truth["safe_type"], truth["safe_level"]) for truth in truths}
    assert all(labels[truth["group"]] == (truth["safe_type"], truth["safe_level"]) for truth in truths)


def test_memory_for_duplicates_is_bytes_per_image(tmp_path: Path) -> None:
    from safevlm.analysis.audit.duplicates import Fingerprints

    prints = Fingerprints.room(1_000, tmp_path)
    held = sum(array.nbytes for array in (prints.readable, prints.digests, prints.bits))
    assert held == 25 * 1_000 and isinstance(prints.thumbs, np.memmap)


def test_two_audits_cannot_share_a_folder_at_once(home: Path, tmp_path: Path) -> None:
    with (
        holding(tmp_path / "out" / run.LOCK, 0, 1) as holder,
        pytest.raises(ValueError, match=f"process {holder.pid} on "),
    ):
        audit(_settings(home, tmp_path / "out"))
