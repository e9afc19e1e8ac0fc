"""Spoiled files of every reader are accepted, or told in one line that names the file. The long form is the module."""

from __future__ import annotations

import pytest

from tests.files import bad_inputs


def test_every_right_example_is_accepted(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Else a reader that refuses everything would pass."""
    for reader in bad_inputs.readers():
        content = bad_inputs.right(reader)
        kind, said = bad_inputs.outcome(reader, content, tmp_path_factory.mktemp("right"))
        assert kind == "accepted", f"{reader.name}: {said}"


def test_a_spoiled_file_is_accepted_or_told_in_one_line() -> None:
    counts, findings = bad_inputs.run(150, seed=13)
    assert not findings, "\n".join(f"{one.reader}: {one.kind}: {one.what}"[:300] for one in findings)
    assert counts["told"] > 50, counts
