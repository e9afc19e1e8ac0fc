"""The drawing styles: npm packages of emoji sets in Iconify's JSON, with their licences, and what each is for.

Nothing is fetched here. The user runs `npm install` once (`install_command`); packages are pinned, since another
version may draw another thing.
"""

from __future__ import annotations

from dataclasses import dataclass

from safevlm.worlds.splits import Split


@dataclass(frozen=True)
class NpmPackage:
    name: str
    version: str
    licence: str
    """SPDX identifier, as the package's own files say."""
    author: str
    source: str
    """Where the drawings or names come from."""


@dataclass(frozen=True)
class Style:
    package: NpmPackage
    look: str
    part: Split
    """`train`: shown to whatever is trained. Else a held-out style: no tower, LLM or guard ever sees it; choices are
    made on that of `validation`, the last question is asked on that of `test`."""
    draws_newer: bool = True
    """Whether it has the things of Emoji 11 and later."""


NOTO = "https://github.com/googlefonts/noto-emoji"
FLUENT = "https://github.com/microsoft/fluentui-emoji"

STYLES = {
    "noto": Style(NpmPackage("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google", NOTO), "shaded", "train"),
    "noto-v1": Style(
        NpmPackage("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google", NOTO), "older drawings", "train", False
    ),
    "fluent-emoji": Style(
        NpmPackage("@iconify-json/fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation", FLUENT), "3-D", "train"
    ),
    "fluent-emoji-flat": Style(
        NpmPackage("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation", FLUENT),
        "flat, the same designs as fluent-emoji",
        "train",
    ),
    "fluent-emoji-high-contrast": Style(
        NpmPackage("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft Corporation", FLUENT),
        "black and white",
        "train",
    ),
    "openmoji": Style(
        NpmPackage("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji", "https://openmoji.org"),
        "outlined",
        "train",
    ),
    "emojione": Style(
        NpmPackage("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "Emoji One", "https://github.com/EmojiTwo/emojitwo"),
        "glossy",
        "validation",
        False,
    ),
    "twemoji": Style(
        NpmPackage(
            "@iconify-json/twemoji",
            "1.2.5",
            "CC-BY-4.0",
            "Twitter, Inc and others",
            "https://github.com/jdecked/twemoji",
        ),
        "flat",
        "test",
    ),
}
NAMES = NpmPackage("emojibase-data", "17.0.0", "MIT", "Miles Johnson", "https://emojibase.dev")
"""Names and keywords of emojis."""
PACKAGES = (*(style.package for style in STYLES.values()), NAMES)


def of_part(part: Split) -> tuple[str, ...]:
    """Names of the styles of a part."""
    return tuple(name for name, style in STYLES.items() if style.part == part)


def install_command(folder: str) -> str:
    """What fetches all packages into `FOLDER/node_modules`; their scripts are not run, they have none."""
    packages = " ".join(f"{package.name}@{package.version}" for package in PACKAGES)
    return f"npm install --prefix {folder} --ignore-scripts {packages}"
