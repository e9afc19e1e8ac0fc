"""`safevlm pictograms parts | data | sheet | build | assemble | clip`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safevlm.command_line import AMOUNT
from safevlm.commands import OK

TEXT = "The second world, of drawn things with real names: its pictures, its data, its suite and its base."


def flags(parser: argparse.ArgumentParser) -> None:
    from safevlm.pictograms.base.config import SIZES
    from safevlm.pictograms.dataset import PictogramDataConfig
    from safevlm.pictograms.styles import STYLES

    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parts = verbs.add_parser("parts", help="render the things of all styles from their npm packages")
    parts.add_argument("--packages", type=Path, required=True, metavar="DIR", help="where `npm install` was run")
    parts.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the parts go")
    data = verbs.add_parser("data", help="write training records and the evaluation suite")
    data.add_argument("--parts", type=Path, required=True, metavar="DIR", help="what `parts` wrote")
    data.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the data goes")
    _amounts(data, {"": PictogramDataConfig()})
    sheet = verbs.add_parser("sheet", help="draw a contact sheet of things, styles and scenes")
    sheet.add_argument("--parts", type=Path, required=True, metavar="DIR", help="what `parts` wrote")
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE", help="a PNG")
    build = verbs.add_parser("build", help="make the base: a CLIP, an LLM safe in words, and then it learns to see")
    assemble = verbs.add_parser("assemble", help="the base out of what a build learned, and the LLM")
    assemble.add_argument("--made", type=Path, required=True, metavar="DIR", help="what `build` wrote")
    assemble.add_argument("--llm", type=Path, required=True, metavar="PATH", help="the LLM that the build was given")
    assemble.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the base goes")
    clip = verbs.add_parser("clip", help="only a CLIP, without some styles: for the rule of the held-out styles")
    for verb in (build, clip):
        verb.add_argument("--parts", type=Path, required=True, metavar="DIR", help="what `parts` wrote")
        verb.add_argument(
            "--llm", type=Path, required=True, metavar="PATH", help="a causal LM: a folder, or a GGUF file"
        )
        verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it goes")
        verb.add_argument("--device", default="auto", help="auto, cpu or cuda")
        verb.add_argument("--size", choices=tuple(SIZES), help="default: by the device; what a flag below says, counts")
        _amounts(verb, SIZES)
    build.add_argument("--data", type=Path, metavar="DIR", help="what `data` wrote; without it nothing is measured")
    build.add_argument("--only", choices=("clip", "aligned", "base"), default="", help="one step; default: all of them")
    build.add_argument("--start", type=Path, metavar="DIR", help="an earlier build, whose clip and LLM learn on")
    build.add_argument("--test", action="store_true", help="measure on the test too; it is asked once, last")
    clip.add_argument(
        "--without", nargs="+", required=True, choices=STYLES, metavar="STYLE", help="styles to leave out"
    )


def run(options: argparse.Namespace) -> int:
    VERBS[options.verb](options)
    return OK


def _amounts(parser: argparse.ArgumentParser, configs: Mapping[str, Any]) -> None:
    """A flag for each field; `configs`: one config, or several by their names, whose values are told as defaults."""
    for field in fields(next(iter(configs.values()))):
        defaults = ", ".join(
            f"{getattr(one, field.name)} ({name})".removesuffix(" ()") for name, one in configs.items()
        )
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=AMOUNT, help=f"default {defaults}")


def _given(options: argparse.Namespace, config: Any) -> Any:
    """The config, but for what flags say otherwise."""
    said = {field.name: getattr(options, field.name) for field in fields(config)}
    return replace(config, **{name: value for name, value in said.items() if value is not None})


def _sizes(options: argparse.Namespace, device: Any) -> Any:
    """Of the base."""
    from safevlm.pictograms.base.config import SIZES

    return _given(options, SIZES[options.size or ("card" if device.type == "cuda" else "cpu")])


def _parts(options: argparse.Namespace) -> None:
    from safevlm.pictograms import parts

    parts.write(options.packages, options.out)


def _data(options: argparse.Namespace) -> None:
    from safevlm.pictograms import dataset
    from safevlm.pictograms.parts import Parts

    dataset.write(options.out, Parts(options.parts), _given(options, dataset.PictogramDataConfig()))


def _sheet(options: argparse.Namespace) -> None:
    from safevlm.pictograms import sheet
    from safevlm.pictograms.parts import Parts

    sheet.write(options.out, Parts(options.parts))


def _build(options: argparse.Namespace) -> None:
    from safevlm.model.loading import default_device
    from safevlm.pictograms.base import build
    from safevlm.pictograms.dataset import VALIDATION
    from safevlm.pictograms.parts import Parts

    device = default_device(options.device)
    parts, config = Parts(options.parts), _sizes(options, device)
    build.build(options.out, parts, options.llm, config, device, options.only, options.start)
    if options.data is not None:
        build.measured(options.out, parts, options.data / VALIDATION, "validation", config, device)
        if options.test:
            build.measured(options.out, parts, options.data, "test", config, device)


def _assemble(options: argparse.Namespace) -> None:
    from safevlm.pictograms.base.assemble import assemble

    assemble(options.made, options.llm, options.out)


def _clip(options: argparse.Namespace) -> None:
    from safevlm.model.loading import default_device
    from safevlm.pictograms.base import build
    from safevlm.pictograms.parts import Parts
    from safevlm.pictograms.styles import STYLES

    styles = [style for style in STYLES if style not in options.without]
    device = default_device(options.device)
    build.try_styles(options.out, Parts(options.parts), options.llm, styles, _sizes(options, device), device)


VERBS = {"parts": _parts, "data": _data, "sheet": _sheet, "build": _build, "assemble": _assemble, "clip": _clip}
