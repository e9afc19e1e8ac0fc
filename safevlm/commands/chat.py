"""`safevlm chat`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from safevlm.command_line import COUNT, SEED, number
from safevlm.commands import add_base, load_engine
from safevlm.commands.serve import KEY
from safevlm.usage import UsageError

if TYPE_CHECKING:
    from safevlm.serve.console.partners import ChatPartner

TEXT = "Talk to a model with its guard on."
OF_THE_SERVER = {"defense": "auto", "policy": None, "quantize": "none", "device": "auto", "base": None}
"""What --server leaves to its server, with the values of flags that were not given."""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="DIR", help="a checkpoint of any kind, or a training run; with --server: the model's name"
    )
    parser.add_argument(
        "--server", metavar="URL", help="talk to a running server: safevlm serve, or any OpenAI-compatible one"
    )
    parser.add_argument("--api-key", metavar="TEXT", help=f"of the server (better: in the environment, as {KEY})")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--ask", metavar="TEXT", help="answer this one question and leave")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt, in front of everything")
    parser.add_argument(
        "--defense",
        default="auto",
        metavar="NAME",
        help="none, safety-head, static-prompt, or several joined by +; auto: safety-head where the model has one",
    )
    parser.add_argument("--policy", metavar="FILE", help="YAML: what to do per category and level")
    parser.add_argument(
        "--max-new-tokens", type=COUNT, metavar="N", help="longest answer in tokens (256; of a server: its own)"
    )
    parser.add_argument(
        "--temperature", type=number(float, least=0), metavar="X", help="0: greedy, as usual here; a server has its own"
    )
    parser.add_argument(
        "--top-p", type=number(float, above=0, most=1), metavar="X", help="draw among the likeliest tokens of this sum"
    )
    parser.add_argument("--seed", type=SEED, metavar="N", help="of drawn answers (none: drawn anew)")
    parser.add_argument(
        "--quantize", default="none", choices=["none", "nf4", "int8"], help="hold the LLM in 4 or 8 bits (bitsandbytes)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="with --ask: print the reply as JSON")
    add_base(parser)


def run(options: argparse.Namespace) -> int:
    _check(options)
    from safevlm.serve import chat_cli
    from safevlm.serve.console.partners import Sampling
    from safevlm.serve.console.transcript import ChatImage

    images = [ChatImage.opened(path) for path in options.image]  # before a model is loaded
    partner = _remote(options) if options.server else _local(options)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    if options.ask is None:
        return chat_cli.talk(partner, images, sampling=sampling, system=options.system)
    return chat_cli.ask(partner, options.ask, images, as_json=options.json, sampling=sampling, system=options.system)


def _check(options: argparse.Namespace) -> None:
    """UsageError: flags that contradict each other."""
    if not options.model and not options.server:
        raise UsageError("nobody to talk to: give --model DIR, or --server URL")
    if options.json and options.ask is None:
        raise UsageError("--json prints one reply; give its question: --ask TEXT")
    if options.api_key and not options.server:
        raise UsageError("--api-key has no effect without --server")
    if options.top_p is not None and not options.temperature and not options.server:
        raise UsageError("--top-p has no effect without a --temperature above 0")
    given = [name for name, usual in OF_THE_SERVER.items() if getattr(options, name) != usual]
    if options.server and given:
        raise UsageError(f"--{given[0]} has no effect with --server, which decides that; start the server with it")


def _local(options: argparse.Namespace) -> ChatPartner:
    from safevlm.serve.console.local_model import LocalModel

    return LocalModel(load_engine(options), options.defense, options.policy)


def _remote(options: argparse.Namespace) -> ChatPartner:
    from safevlm.serve.console.remote_model import RemoteModel

    return RemoteModel.connect(options.server, options.api_key or os.environ.get(KEY, ""), options.model or "")
