"""`python -m safevlm.miniature build | data | matched-pairs | contaminate | audit-truth | judge-server`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safevlm.command_line import AMOUNT, CommandParser, number
from safevlm.usage import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
BASE = Path("checkpoints/miniature")


def main() -> int:
    from safevlm.miniature.judge_server import PORT
    from safevlm.miniature.world import SEED

    parser = CommandParser(prog="python -m safevlm.miniature", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=text)
        own.set_defaults(run=run)
        return own

    build = command("build", _build, "train the small base (about 30 minutes on one core)")
    build.add_argument("--out", type=Path, help=f"where the base goes (default {BASE}; with --family {BASE}-FAMILY)")
    build.add_argument("--family", help="a base of another family out of the miniature, by its model_type")
    build.add_argument(
        "--from", dest="miniature", type=Path, help=f"with --family: the miniature that it starts from (default {BASE})"
    )
    build.add_argument("--seed", type=number(int, least=0, below=2**32), default=SEED, help=f"default {SEED}")
    _data_flags(command("data", _data, "write training records and the evaluation suite"))
    matched_pairs = command(
        "matched-pairs", _matched_pairs, "write the same questions in words and about images, for `analyze layers`"
    )
    matched_pairs.add_argument("--out", type=Path, required=True, help="where the data goes")
    _contaminate_flags(command("contaminate", _contaminate, "write a folder of images, a few of them risky"))
    truth = command("audit-truth", _audit_truth, "compare an audit of a contaminated folder with the truth")
    truth.add_argument("--truth", type=Path, required=True, help="truth.jsonl of `contaminate`")
    truth.add_argument("--audit", type=Path, required=True, help="the audit's folder")
    truth.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    server = command("judge-server", _serve_judge, "an OpenAI-compatible judge that runs offline and goes by words")
    server.add_argument(
        "--port",
        type=number(int, least=0, most=65535),
        default=PORT,
        help=f"of 127.0.0.1; 0: any free one (default {PORT})",
    )
    options = parser.parse_args()
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 0
    return 0


def _build(options: argparse.Namespace) -> None:
    if options.family is not None:
        return _build_family(options)
    if options.miniature is not None:
        raise UsageError("--from goes with --family")
    from safevlm.miniature.build import BuildConfig, build

    build(options.out or BASE, BuildConfig(seed=options.seed))


def _build_family(options: argparse.Namespace) -> None:
    from safevlm.miniature import family

    if options.family not in family.FAMILIES:
        raise UsageError(f"--family {options.family}: a small base is made of {', '.join(family.FAMILIES)}")
    out = options.out or BASE.with_name(f"{BASE.name}-{options.family}")
    family.build(out, options.family, options.miniature or BASE, family.FamilyConfig(seed=options.seed))


def _data(options: argparse.Namespace) -> None:
    from safevlm.miniature import dataset, layouts

    if options.layout:
        layouts.write(options.out, options.layout)
    else:
        dataset.write(options.out, _filled(dataset.MiniatureDataConfig, options))


def _matched_pairs(options: argparse.Namespace) -> None:
    from safevlm.miniature import matched_pairs

    matched_pairs.write(options.out)


def _contaminate(options: argparse.Namespace) -> None:
    from safevlm.miniature import contamination

    contamination.write(options.out, _filled(contamination.ContaminationConfig, options))


def _audit_truth(options: argparse.Namespace) -> None:
    from safevlm.data.made_by import write_result
    from safevlm.miniature import audit_truth

    table = audit_truth.compare(options.truth, options.audit)
    write_result(options.out, table, {"truth": options.truth, "audit": options.audit / "audit.parquet"})
    print(json.dumps(table, indent=1))


def _serve_judge(options: argparse.Namespace) -> None:
    from safevlm.miniature import judge_server

    judge_server.serve(options.port)


def _filled(kind: type[Config], options: argparse.Namespace) -> Config:
    """A dataclass from the flags of its own fields."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


def _data_flags(parser: argparse.ArgumentParser) -> None:
    from safevlm.miniature.dataset import MiniatureDataConfig

    parser.add_argument("--out", type=Path, required=True, help="where the data goes")
    parser.add_argument("--layout", help="write the layout of a real download instead: vlguard, rtvlm or spa_vl")
    for field in fields(MiniatureDataConfig):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=AMOUNT, default=field.default, help=f"default {field.default}")


def _contaminate_flags(parser: argparse.ArgumentParser) -> None:
    from safevlm.miniature.contamination import ContaminationConfig

    parser.add_argument("--out", type=Path, required=True, help="where the images go")
    kinds: dict[type, Any] = {int: AMOUNT, float: number(float, least=0, most=1), str: str}
    for field in fields(ContaminationConfig):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            flag, type=kinds[type(field.default)], default=field.default, help=f"default {field.default}"
        )


if __name__ == "__main__":
    sys.exit(main())
