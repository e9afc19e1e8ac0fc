"""The Markdown pages of the project, and what can be read out of them without building the site."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "checkpoints/README.md"])

FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Page:
    path: Path
    text: str

    @property
    def prose(self) -> str:
        """The text without fenced code."""
        return FENCE.sub("", self.text)

    @property
    def code(self) -> str:
        """Fenced code, continued lines joined."""
        blocks = "\n".join(match.group(0) for match in FENCE.finditer(self.text))
        return re.sub(r"\\\n\s*", " ", blocks)

    @property
    def anchors(self) -> set[str]:
        """Headings as GitHub and MyST name them."""
        return {slug(line.lstrip("#")) for line in self.prose.splitlines() if re.match(r"#{1,4} ", line)}

    @property
    def links(self) -> list[str]:
        """Targets of links and images."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)


def slug(heading: str) -> str:
    words = re.sub(r"[^\w\s-]", "", heading.strip().lower().replace("`", ""))
    return re.sub(r"\s", "-", words)


def page(path: Path) -> Page:
    return Page(path, path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
