"""`python -m safevlm.miniature build | data | planted | audit-truth | judge-server`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m safevlm.miniature", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="train the small base (about 20 minutes on two cores)")
    build.add_argument("--out", type=Path, default=Path("checkpoints/miniature"), help="where the base goes")
    data = commands.add_parser("data", help="write training records and the evaluation suite")
    data.add_argument("--out", type=Path, required=True, help="where the data goes")
    data.add_argument("--layout", help="write the layout of a real download instead: vlguard, rtvlm or spa_vl")
    from safevlm.miniature.dataset import DataConfig

    for field in fields(DataConfig):
        flag = f"--{field.name.replace('_', '-')}"
        data.add_argument(flag, type=int, default=field.default, help=f"default {field.default}")
    _planted_flags(commands.add_parser("planted", help="write a folder with a few risky pictures planted in it"))
    truth = commands.add_parser("audit-truth", help="compare an audit of planted pictures with the truth")
    truth.add_argument("--truth", type=Path, required=True, help="truth.jsonl of `planted`")
    truth.add_argument("--audit", type=Path, required=True, help="the audit's folder")
    truth.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    from safevlm.miniature.judge_server import PORT

    server = commands.add_parser("judge-server", help="a judge by words behind an OpenAI-compatible server, offline")
    server.add_argument("--port", type=int, default=PORT, help=f"of 127.0.0.1; 0: any free one (default {PORT})")
    options = parser.parse_args()
    if options.command == "judge-server":
        return _serve_judge(options.port)
    if options.command == "audit-truth":
        from safevlm.miniature import audit_truth

        text = json.dumps(audit_truth.compare(options.truth, options.audit), indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
        print(text)
        return 0
    if options.command == "planted":
        from safevlm.miniature import planted

        names = [field.name for field in fields(planted.PlantedConfig)]
        planted.write(options.out, planted.PlantedConfig(**{name: getattr(options, name) for name in names}))
        return 0
    if options.command == "data" and options.layout:
        from safevlm.miniature import layouts

        layouts.write(options.out, options.layout)
        return 0
    if options.command == "data":
        from safevlm.miniature.dataset import write

        write(options.out, DataConfig(**{field.name: getattr(options, field.name) for field in fields(DataConfig)}))
        return 0
    from safevlm.miniature.build import BuildConfig
    from safevlm.miniature.build import build as build_base

    build_base(options.out, BuildConfig())
    return 0


def _serve_judge(port: int) -> int:
    from safevlm.miniature import judge_server

    try:
        judge_server.serve(port)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def _planted_flags(parser: argparse.ArgumentParser) -> None:
    from safevlm.miniature.planted import PlantedConfig

    parser.add_argument("--out", type=Path, required=True, help="where the pictures go")
    for field in fields(PlantedConfig):
        kind, flag = type(field.default), f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=field.default, help=f"default {field.default}")


if __name__ == "__main__":
    sys.exit(main())
