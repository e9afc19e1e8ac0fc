"""Our version, versions of installed packages without importing them, and the commit of our own code."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path

VERSION = "0.1.0"
"""Ours; `safevlm.__version__`, and setup.py reads it here."""
PACKAGE = "safevlm"
HERE = Path(__file__).parent


def installed(package: str) -> str | None:
    """None: not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def told() -> str:
    """`safevlm VERSION`, and the commit where it is known."""
    known = commit()
    return f"{PACKAGE} {VERSION}" + (f" (commit {known[:12]})" if known else "")


def commit() -> str | None:
    """Commit of the code that runs: of its checkout, or what pip noted when it installed from a repository."""
    return _checked_out() or _installed_from()


def is_changed() -> bool | None:
    """Whether files of the checkout are not those of its commit: edited, or copied without what git knows of them.

    None: there is no checkout of ours.
    """
    return bool(_git("diff", "--name-only", "HEAD")) if _checked_out() else None


def _checked_out() -> str | None:
    """Trap: an installed package can lie inside somebody else's checkout, whose commit says nothing about ours."""
    if not _git("ls-files", "--error-unmatch", Path(__file__).name):
        return None
    return _git("rev-parse", "HEAD")


def _git(*words: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(HERE), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _installed_from() -> str | None:
    try:
        noted = Distribution.from_name(PACKAGE).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    found = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return str(found) if found else None
