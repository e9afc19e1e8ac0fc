"""The files in examples/deploy: what they start is a command line of ours, and nobody gets in without the key."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from safevlm.__main__ import parser_for
from safevlm.commands import serve
from safevlm.serve.access import is_loopback
from safevlm.usage import UsageError

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "examples/deploy/safevlm.service").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "examples/deploy/Dockerfile").read_text(encoding="utf-8")
PROGRAM = "/opt/safevlm/bin/safevlm"


def settings() -> dict[str, str]:
    """Of the unit; the last where one is repeated, which none is here."""
    return dict(line.split("=", 1) for line in UNIT.splitlines() if re.match(r"\w+=", line))


def shell() -> list[str]:
    """ExecStart as a list of words, with systemd's own `$$` read."""
    return [word.replace("$$", "$") for word in shlex.split(settings()["ExecStart"])]


def instructions() -> list[tuple[str, str]]:
    """(NAME, rest) of the Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def of_unit() -> argparse.Namespace:
    words = shlex.split(shell()[-1].partition(f"exec {PROGRAM} ")[2])
    return parser_for("serve").parse_args(words)


def of_container() -> argparse.Namespace:
    (command,) = [rest for name, rest in instructions() if name == "CMD"]
    program, *words = json.loads(command)
    assert program == "safevlm"
    return parser_for("serve").parse_args(words)


@pytest.mark.parametrize("options", [of_unit, of_container], ids=["unit", "container"])
def test_a_guard_is_named(options) -> None:  # noqa: ANN001
    assert options().defense not in ("auto", "none") and not options().monitor


@pytest.mark.parametrize("options", [of_unit, of_container], ids=["unit", "container"])
def test_flags_are_those_of_serve_and_hold_no_key(options) -> None:  # noqa: ANN001
    given = options()
    assert given.command == "serve" and not given.api_key and not given.upstream_key and not given.without_key


def test_the_unit_listens_on_this_machine_alone() -> None:
    assert is_loopback(of_unit().host)
    assert settings()["IPAddressDeny"] == "any" and settings()["IPAddressAllow"] == "localhost"


def test_the_container_does_not_start_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.KEY, raising=False)
    given = of_container()
    assert not is_loopback(given.host)
    with pytest.raises(UsageError, match=serve.KEY):
        serve.run(given)


def test_the_image_holds_no_secret_and_has_a_user_of_its_own() -> None:
    told = [rest for name, rest in instructions() if name in ("ENV", "ARG", "COPY", "RUN")]
    assert not [rest for rest in told if re.search(r"KEY|TOKEN|SECRET|PASSWORD", rest)]
    assert [name for name, _ in instructions()].index("USER") < [name for name, _ in instructions()].index("CMD")
    (base,) = [rest for name, rest in instructions() if name == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), "a tag that moves"


def test_the_image_is_made_of_files_that_are_there_and_sent() -> None:
    copied = {word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]}
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignore and copied == {line[1:] for line in ignore if line.startswith("!")}
    assert not [name for name in copied if not (ROOT / name).exists()]


def test_the_container_asks_its_own_port_for_its_health() -> None:
    (health,) = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    assert f"'http://127.0.0.1:{of_container().port}/healthz'" in health
    compile(json.loads(health.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")


@pytest.fixture
def started(tmp_path: Path):  # noqa: ANN201
    """Runs the unit's line with a program that tells what it was given; what it told, or None: it did not start."""
    program = tmp_path / "program"
    program.write_text(
        '#!/bin/sh\nkill -HUP $$\nprintf "%s\\n" "$SAFEVLM_API_KEY" "$*"; tr "\\0" " " < /proc/$$/cmdline\n'
    )
    program.chmod(0o700)

    def start(key: str | None) -> str | None:
        if key is not None:
            (tmp_path / "api-key").write_text(key)
        words = [word.replace("%d", str(tmp_path)).replace(PROGRAM, str(program)) for word in shell()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, env={"PATH": "/usr/bin:/bin"})
        assert (done.returncode == 0) == bool(done.stdout)
        return done.stdout or None

    return start


def test_the_unit_hands_its_key_over_in_the_environment_and_outlives_an_early_reload(started) -> None:  # noqa: ANN001
    told = started("s3cret\n")
    key, arguments, line = told.splitlines()
    assert key == "s3cret" and arguments.startswith("serve --model ")
    assert "s3cret" not in arguments + line


@pytest.mark.parametrize("key", [None, "", "\n"], ids=["no-file", "empty", "blank"])
def test_the_unit_starts_nothing_without_a_key(started, key: str | None) -> None:  # noqa: ANN001
    assert started(key) is None
