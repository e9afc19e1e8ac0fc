"""What made a result file stands in it: who changes a weight, a row or a rule gets another record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.data.made_by import command_line, digest, write_result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "defenses").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_result_tells_command_commit_versions_and_digests(tmp_path: Path, model: Path) -> None:
    write_result(tmp_path / "out" / "it.json", {"value": 1}, {"model": model})
    found = json.loads((tmp_path / "out" / "it.json").read_text())
    made = found.pop("made_by")
    assert found == {"value": 1} and set(made) == {"command", "commit", "versions", "digests"}
    assert "python" in made["versions"] and len(made["digests"]["model"]) == 16


def test_a_digest_follows_the_content_and_not_the_place(model: Path) -> None:
    before, moved = digest(model), model.rename(model.parent / "elsewhere")
    assert digest(moved) == before
    (moved / "defenses" / "bank.safetensors").write_bytes(b"a defense is no other model")
    assert digest(moved) == before
    (moved / "model.safetensors").write_bytes(b"other weights")
    assert digest(moved) != before


def test_data_is_told_by_its_tables_and_what_is_not_here_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text("{}\n")
    assert digest(tmp_path) == digest(tmp_path / "eval.jsonl") != ""
    assert digest("http://127.0.0.1:1/v1") == digest("") == ""


def test_a_value_that_is_no_number_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    write_result(path, {"value": 1}, {})
    with pytest.raises(ValueError, match="JSON"):
        write_result(path, {"value": float("nan")}, {})
    assert json.loads(path.read_text())["value"] == 1


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/somewhere/bin/safevlm", "safevlm"),
        ("/somewhere/safevlm/__main__.py", "safevlm"),
        ("/somewhere/safevlm/miniature/__main__.py", "python -m safevlm.miniature"),
    ],
)
def test_the_command_is_as_one_types_it(monkeypatch: pytest.MonkeyPatch, program: str, said: str) -> None:
    monkeypatch.setattr("sys.argv", [program, "build", "--out", "a b"])
    assert command_line() == f"{said} build --out 'a b'"
