"""The manual builds without a warning, into pages that need no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow

FETCHED = re.compile(
    r"""<(?:script|img|link|iframe)[^>]*?(?:src|href)=["'](?:https?:)?//[^"']+|url\(["']?(?:https?:)?//"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


def test_every_page_is_built(site: Path):
    missing = [path.stem for path in (ROOT / "docs").glob("*.md") if not (site / f"{path.stem}.html").exists()]
    assert not missing


def test_nothing_is_fetched_from_a_network(site: Path):
    found = {file.name: FETCHED.findall(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    found |= {file.name: FETCHED.findall(file.read_text(encoding="utf-8")) for file in site.rglob("*.css")}
    assert not {name: links for name, links in found.items() if links}


def test_links_between_pages_lead_to_an_element(site: Path):
    """Hrefs of the built pages, anchors included."""
    pages = {file.name: file.read_text(encoding="utf-8") for file in site.glob("*.html")}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    broken = []
    for name, text in pages.items():
        for link in re.findall(r'href="([^"]+)"', text):
            file, _, anchor = re.sub(r"\?v=\w+$", "", link).partition("#")
            if re.match(r"[a-z]+:", link) or file.startswith("//"):
                continue
            target = file or name
            if not (site / target).exists() or anchor and target in ids and anchor not in ids[target]:
                broken.append(f"{name}: {link}")
    assert not broken, "\n".join(broken)


def test_the_api_page_documents_what_the_package_exports(site: Path):
    import safevlm

    text = (site / "api.html").read_text(encoding="utf-8")
    exported = [name for name in getattr(safevlm, "__all__", ()) if not name.startswith("__")]
    missing = [name for name in exported if f".{name}" not in text and f">{name}<" not in text]
    assert not missing, f"docs/api.md lacks {missing}"
