"""`safevlm serve`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from safevlm.command_line import COUNT, number
from safevlm.commands import add_base
from safevlm.usage import UsageError

TEXT = "Serve a guarded model to OpenAI's clients."
KEY = "SAFEVLM_API_KEY"
"""Environment variable with the key."""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind, or a training run")
    parser.add_argument("--name", metavar="NAME", help="by which clients ask for it (default: the folder's)")
    parser.add_argument("--defense", default="auto", metavar="NAME", help="as for `safevlm chat`")
    parser.add_argument("--policy", metavar="FILE", help="YAML: what to do per category and level")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=number(int, least=0, most=65535), default=8000, help="0: any free one")
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"a client must send one of these; may be repeated (better: in the environment, as {KEY})",
    )
    parser.add_argument("--without-key", action="store_true", help="let everybody in who reaches --host")
    parser.add_argument("--batch", type=COUNT, metavar="N", help="requests answered together (default 16)")
    parser.add_argument("--waiting", type=COUNT, metavar="N", help="requests in the queue (default 128)")
    parser.add_argument(
        "--timeout", type=number(float, above=0), metavar="S", help="seconds for one request (default 300)"
    )
    parser.add_argument(
        "--quantize", default="none", choices=["none", "nf4", "int8"], help="hold the LLM in 4 or 8 bits (bitsandbytes)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add_base(parser)


def run(options: argparse.Namespace) -> int:
    from safevlm.serve.access import is_loopback

    keys = [*options.api_key, *filter(None, [os.environ.get(KEY, "")])]
    if not is_loopback(options.host) and not keys and not options.without_key:
        raise UsageError(
            f"--host {options.host} can be reached from other machines: give --api-key or {KEY}, or say --without-key"
        )
    try:
        import uvicorn

        from safevlm.serve.app import create_app
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; pip install 'safevlm[serve]'") from error
    from safevlm.engine import Engine
    from safevlm.serve.access import Keys
    from safevlm.serve.guarded import GuardedModel
    from safevlm.serve.limits import Limits

    engine = Engine.load(
        options.model,
        defense=options.defense,
        policy=options.policy,
        device=options.device,
        base=options.base,
        quantize=options.quantize,
    )
    given = {"batch": options.batch, "waiting": options.waiting, "seconds": options.timeout}
    limits = replace(Limits(), **{name: value for name, value in given.items() if value is not None})
    model = GuardedModel(engine, options.name or Path(options.model).resolve().name, limits)
    app = create_app(model, Keys(keys), is_local=is_loopback(options.host))
    print(f"{model.name} behind {engine.defense.name}: http://{options.host}:{options.port}/v1", flush=True)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    return 0
