"""`safevlm serve`."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.command_line import COUNT, number
from safevlm.commands import add_base, load_engine
from safevlm.commands.output_guards import flags as output_guard_flags
from safevlm.commands.output_guards import output_guard
from safevlm.commands.page import announce, page
from safevlm.commands.page import check_flags as check_page_flags
from safevlm.commands.page import flags as page_flags
from safevlm.usage import UsageError

if TYPE_CHECKING:
    from safevlm.serve.guarded import GuardedModel

TEXT = "Serve a guarded model to OpenAI's clients."
KEY = "SAFEVLM_API_KEY"
"""Environment variable with the key."""
UPSTREAM_KEY = "SAFEVLM_UPSTREAM_KEY"
"""Environment variable with the key that the upstream asks for."""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind, or a training run")
    parser.add_argument("--name", metavar="NAME", help="by which clients ask for it (default: the folder's)")
    parser.add_argument("--defense", default="auto", metavar="NAME", help="as for `safevlm chat`")
    parser.add_argument("--policy", metavar="FILE", help="YAML: what to do per category and level")
    parser.add_argument("--monitor", action="store_true", help="look and count, and act on nothing")
    parser.add_argument(
        "--keys", metavar="FILE", help="YAML: API keys by name, as hashes, each with a policy of its own if it likes"
    )
    parser.add_argument(
        "--allow-images", metavar="FILE", help="SHA-256 of image files, one a line, that are never acted on"
    )
    parser.add_argument("--record", metavar="FILE", help="append every decision as a line of JSON, without content")
    output_guard_flags(parser)
    page_flags(parser)
    parser.add_argument("--otel", action="store_true", help="a span of OpenTelemetry for every decision")
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
    parser.add_argument(
        "--upstream",
        metavar="URL",
        help="guard another OpenAI-compatible server, which holds the model; of --model only what looks is loaded",
    )
    parser.add_argument("--upstream-model", metavar="NAME", help="its name for the model (default: its only one)")
    parser.add_argument(
        "--upstream-key", metavar="KEY", help=f"its API key (better: in the environment, as {UPSTREAM_KEY})"
    )
    parser.add_argument(
        "--allow-domain",
        action="append",
        default=[],
        metavar="DOMAIN",
        help="fetch images by https from there (images.example.org, or .example.org for all below); may be repeated",
    )
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
    if not is_loopback(options.host) and not keys and not options.keys and not options.without_key:
        raise UsageError(
            f"--host {options.host} can be reached from other machines: give --api-key, --keys or {KEY}, or say "
            "--without-key"
        )
    for flag in ("upstream_model", "upstream_key"):
        if getattr(options, flag) and not options.upstream:
            raise UsageError(f"--{flag.replace('_', '-')} is about another server; name it with --upstream URL")
    if options.upstream and options.quantize != "none":
        raise UsageError("--quantize packs the LLM, and with --upstream none is loaded; leave it out")
    check_page_flags(options)
    try:
        from safevlm.serve.app import create_app
        from safevlm.serve.server import run as run_server
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; pip install 'safevlm[serve]'") from error
    from safevlm.serve.fetching import Fetcher
    from safevlm.serve.front import Front, check_trial
    from safevlm.serve.guarded import GuardedModel
    from safevlm.serve.limits import Limits
    from safevlm.serve.upstream import Upstream, address, only_model

    try:
        fetcher = Fetcher(options.allow_domain, Limits.image_bytes) if options.allow_domain else None
    except ValueError as error:
        raise UsageError(f"--allow-domain {error}") from error
    try:
        address(options.upstream or "http://none")
    except ValueError as error:
        raise UsageError(f"--upstream {error}") from error
    upstream_key = options.upstream_key or os.environ.get(UPSTREAM_KEY, "")
    there = options.upstream_model
    if options.upstream and not there:
        there = only_model(options.upstream, upstream_key)
    engine = load_engine(options, lm=not options.upstream)
    given = {"batch": options.batch, "waiting": options.waiting, "seconds": options.timeout}
    limits = replace(Limits(), **{name: value for name, value in given.items() if value is not None})
    if options.upstream:
        upstream = Upstream(options.upstream, upstream_key, limits.seconds)
        model: GuardedModel = Front(
            engine, options.name or there, limits, fetcher=fetcher, upstream=upstream, upstream_model=there
        )
        check_trial(engine)
    else:
        model = GuardedModel(engine, options.name or Path(options.model).resolve().name, limits, fetcher=fetcher)
    model.output_guard = output_guard(model, options)
    _deploy(model, options, keys)
    shown = page(model, options)
    app = create_app(model, is_local=is_loopback(options.host), page=shown)
    where = f" at {options.upstream}" if options.upstream else ""
    print(f"{model.name}{where} behind {engine.defense.name}: http://{options.host}:{options.port}/v1", flush=True)
    announce(options)
    return run_server(app, options.host, options.port, shown.stopping.tell if shown is not None else lambda: None)


def _deploy(model: GuardedModel, options: argparse.Namespace, keys: Sequence[str]) -> None:
    """What the deployer decides: keys, policies, known images and what is kept, read again when it changes."""
    from safevlm.serve.deployment import Deployer, DeploymentFiles
    from safevlm.serve.record import DecisionRecord
    from safevlm.serve.reload import Reloading
    from safevlm.serve.spans import Spans

    files = DeploymentFiles(
        defense=options.defense,
        policy=_path(options.policy),
        monitor=options.monitor,
        keys=_path(options.keys),
        known_images=_path(options.allow_images),
        api_keys=tuple(keys),
    )
    deployer = Deployer(model.engine, files, model.metrics.guard_seconds.observe)
    model.deployment = deployer.read()
    record = DecisionRecord(Path(options.record)) if options.record else None
    model.keepers += [record] if record is not None else []
    model.keepers += [Spans()] if options.otel else []
    reloading = Reloading(model, deployer, record.reopen if record is not None else lambda: None)
    signal.signal(signal.SIGHUP, lambda *_: reloading.ask())
    reloading.start()


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None
