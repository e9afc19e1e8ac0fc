"""scripts/env.sh: what it does to an environment that is not ours, and what the commands keep from their output."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from safevlm.commands import library_noise

ROOT = Path(__file__).parents[1]
PIP = "import sys\nprint('pip', *sys.argv[1:])\n"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without any package, whose pip tells what it was asked."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    pip = next(folder.glob("lib/python3*/site-packages")) / "pip"
    pip.mkdir()
    (pip / "__main__.py").write_text(PIP)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "safevlm").mkdir()
    (tmp_path / "safevlm" / "__init__.py").touch()
    for name in ("scripts/env.sh", "requirements.txt", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts" / "go.sh").write_text(
        'set -euo pipefail\nsource "$(dirname "$0")/env.sh"\necho "go on in $PWD"\n'
    )
    return tmp_path


def _go(clone: Path, environment: Path | None, **variables: str) -> subprocess.CompletedProcess[str]:
    """`environment` is active by the variables; none: no environment is."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    path = [str(environment / "bin")] if environment else []
    variables = {**kept, "PATH": os.pathsep.join([*path, "/usr/bin", "/bin"]), **variables}
    return subprocess.run(["bash", str(clone / "scripts" / "go.sh")], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_a_foreign_environment_is_told_what_it_lacks_and_left_alone(clone: Path, foreign: Path, kind: str) -> None:
    done = _go(clone, foreign, **{kind: str(foreign)})
    assert done.returncode == 1 and "go on" not in done.stdout and "pip" not in done.stdout
    assert (
        f"{foreign} lacks: torch " in done.stderr and "safevlm\n" in done.stderr and "SAFEVLM_INSTALL=1" in done.stderr
    )
    assert not (clone / ".venv").exists()


def test_a_foreign_environment_is_installed_into_when_told_to(clone: Path, foreign: Path) -> None:
    done = _go(clone, foreign, VIRTUAL_ENV=str(foreign), SAFEVLM_INSTALL="1", PYTHONPATH=str(clone))
    assert done.returncode == 0, done.stderr
    assert "pip install --quiet --disable-pip-version-check --editable .[all]" in done.stdout
    assert f"go on in {clone}" in done.stdout


def test_a_foreign_environment_that_has_everything_is_used(clone: Path) -> None:
    here = Path(sys.prefix)
    done = _go(clone, here, VIRTUAL_ENV=str(here), PYTHONPATH=str(clone))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"go on in {clone}\n", "")


def test_without_an_environment_ours_is_made_once_and_filled(clone: Path, tmp_path: Path) -> None:
    (clone / "python").write_text(
        f'#!/bin/sh\n"{sys.executable}" -m venv --without-pip .venv\n'
        f"mkdir .venv/lib/python3.{sys.version_info.minor}/site-packages/pip\n"
        f"printf '%s' \"{PIP}\" >.venv/lib/python3.{sys.version_info.minor}/site-packages/pip/__main__.py\n"
    )
    (clone / "python").chmod(0o755)
    first, second = (_go(clone, None, PYTHON=str(clone / "python"), PYTHONPATH=str(clone)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert "making .venv" in first.stdout and first.stdout.count("pip install") == 2
    assert second.stdout == f"go on in {clone}\n"


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """Of the libraries; the filters go again."""
    found = [logging.getLogger(name) for name in library_noise.UNSAID]
    before = [list(one.filters) for one in found]
    yield found
    for one, filters in zip(found, before, strict=True):
        one.filters = filters


def test_a_library_is_heard_but_for_what_nobody_can_act_on(
    loggers: list[logging.Logger], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    library_noise.silence()
    for logger, beginning in zip(loggers, library_noise.UNSAID.values(), strict=True):
        monkeypatch.setattr(logger, "propagate", True)
        logger.warning("%s and more", beginning)
        logger.warning("the optimizer's state is lost")
    # a set: a library's own handlers may pass a record on more than once
    assert set(caplog.messages) == {"the optimizer's state is lost"}
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true", "what the user set stays"
