"""`safevlm COMMAND`: the commands of the toolkit. Exit codes: 0 fine, 1 a finding or failed check, 2 wrong usage."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

OK, FAILED, USAGE = 0, 1, 2

RUN_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
"""What a user can mend: shown as one line, without a traceback. Anything else is a bug and shows where it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in words if not word.startswith("--local_rank")]  # deepspeed's launcher puts it first
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)  # deprecations among our dependencies
    parser = argparse.ArgumentParser(prog="safevlm", description="Eyes for risk for LLaVA-v1.5.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (describe, _) in COMMANDS.items():
        describe(commands.add_parser(name, help=DESCRIPTIONS[name], description=DESCRIPTIONS[name]))
    if words[:1] == ["train"]:  # the recipe's own parser knows every --key.sub
        return _run(_train, words[1:])
    if words[:1] == ["check"]:  # it takes the recipe's flags too, and hands them on
        return _check_words(parser, words)
    options = parser.parse_args(words)
    return _run(COMMANDS[options.command][1], options)


def _run(command: Callable[..., int], options: object) -> int:
    try:
        return command(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return FAILED
    except RUN_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        _end_progress_bars()
        print(f"error: {message}", file=sys.stderr)
        return FAILED


def _end_progress_bars() -> None:
    """A bar that an error left open would share its line with the message."""
    from tqdm import tqdm

    for bar in list(tqdm._instances):
        bar.close()


def _train(words: Sequence[str]) -> int:
    from safevlm.training.recipe import parse

    recipe = parse(words)
    from safevlm.training.run import train

    print(f"done: {train(recipe)}")
    return OK


def _check_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    from safevlm.check.command import UsageError, split_flags

    own, recipe_flags = split_flags(words)
    options = parser.parse_args(own)
    options.recipe_flags = recipe_flags
    try:
        return _run(_check, options)
    except UsageError as error:
        parser.error(str(error))


def _check(options: argparse.Namespace) -> int:
    from safevlm.check import command, findings

    request = command.Request(
        path=options.path, gpus=options.gpus, nodes=options.nodes, gpu_memory=options.gpu_memory, base=options.base,
        against=tuple(options.against), taxonomy=options.taxonomy, images=options.images,
        recipe_flags=tuple(options.recipe_flags),
    )  # fmt: skip
    if options.json:
        found = list(command.findings(request))
        print(findings.as_json(found))
    else:
        found = findings.show(command.findings(request))
    return OK if all(one.ok for one in found) else FAILED


def _merge(options: argparse.Namespace) -> int:
    from safevlm.training.merge import describe, fold

    done = fold(
        options.run, Path(options.out), base=options.base, tolerance=options.tolerance, dtype=options.dtype,
        stock=options.stock,
    )  # fmt: skip
    print(describe(done, options.out, options.tolerance))
    return OK


def _convert(options: argparse.Namespace) -> int:
    from safevlm.model.convert import convert, describe

    report = convert(
        options.source, options.out, base=options.base, vision_tower=options.vision_tower, tokenizer=options.tokenizer,
        dtype=options.dtype,
    )  # fmt: skip
    print(describe(report, options.out))
    return OK


def _chat(options: argparse.Namespace) -> int:
    from safevlm.engine import Engine
    from safevlm.serve import chat_cli

    engine = Engine.load(
        options.model, defense=options.defense, policy=options.policy, device=options.device, base=options.base
    )
    if options.ask is None:
        return chat_cli.talk(engine, options.image)
    return chat_cli.ask(engine, options.ask, options.image, as_json=options.json)


def _mix(options: argparse.Namespace) -> int:
    from safevlm.data import mix_build, mix_report

    make = mix_build.check if options.check else mix_build.build
    report = make(Path(options.mix), Path(options.out), seed=options.seed, root=options.root)
    print("\n".join(mix_report.lines(report)))
    print(f"nothing written ({options.out})" if options.check else f"done: {options.out}")
    return OK


def _audit(options: argparse.Namespace) -> int:
    from safevlm.analysis.audit import run

    settings = run.Settings(**{name: value for name, value in vars(options).items() if name != "command"})
    for line in run.lines(run.audit(settings), settings):
        print(line)
    return OK


def _check_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", type=Path, metavar="PATH",
        help="a recipe (with its flags, as train takes them), a model, or data; nothing: the machine only",
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs per node; default: those seen here")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the run")
    parser.add_argument("--gpu-memory", type=float, metavar="GiB", help="of one GPU; default: the smallest seen, or 80")
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="FILE", help="data that training data must not hold"
    )
    parser.add_argument("--taxonomy", type=Path, metavar="FILE", help="YAML of categories and levels, for data")
    parser.add_argument("--images", default="", metavar="DIR", help="folder that relative picture paths start from")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    _model_flags(parser)


def _analyze(options: argparse.Namespace) -> int:
    from safevlm.analysis import calibration, head_accuracy, tsne

    runs = {
        "tsne": (tsne.run, tsne.TsneOptions),
        "head": (head_accuracy.run, head_accuracy.HeadOptions),
        "calibration": (calibration.run, calibration.CalibrationOptions),
    }
    run, kind = runs[options.analysis]
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    given |= {"out": Path(options.out)}
    if "spaces" in given:
        given["spaces"] = tuple(filter(None, options.spaces.split(",")))
    run(kind(**given))
    print(f"figures and {given['out'] / 'summary.json'} are written")
    return OK


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", help="folder of the checkpoint's base model, if it has moved")


def _merge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a training run, or one of its checkpoints")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the merged checkpoint goes")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest allowed difference, relative to the largest logit"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16"],
        help="type of the weights as written; merging and comparing are float32 always",
    )  # fmt: skip
    parser.add_argument(
        "--stock", action="store_true", help="write a plain LLaVA for stock servers, and the guard beside it in safety/"
    )
    _model_flags(parser)


def _convert_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="an original LLaVA-v1.5 folder: full, projector-only, or LoRA")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the transformers folder goes; new or empty")
    parser.add_argument("--base", metavar="DIR", help="the LLM of a projector-only or LoRA folder: Vicuna or LLaVA")
    parser.add_argument(
        "--vision-tower", metavar="DIR",
        help="CLIP folder (config, preprocessor, weights); needed unless SRC holds its tower",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder with tokenizer.model, if neither SRC nor --base has one"
    )
    parser.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], help="type of the weights as written; default: the LLM's"
    )


def _chat_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind, or a training run")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    parser.add_argument("--ask", metavar="TEXT", help="answer this one question and leave")
    parser.add_argument(
        "--defense", default="auto", metavar="NAME",
        help="none, safety-head, static-prompt, or several joined by +; auto: safety-head where the model has one",
    )  # fmt: skip
    parser.add_argument("--policy", metavar="FILE", help="YAML: what to do per category and level")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="with --ask: print the reply as JSON")
    _model_flags(parser)


def _mix_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mix", metavar="MIX", help="YAML: sources, labels, counts; scripts/recipes/mix_safevlm.yaml")
    parser.add_argument("--out", required=True, metavar="DIR", help="where stage1.jsonl, stage2.jsonl, mix.json go")
    parser.add_argument("--seed", type=int, help="instead of the file's")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where source paths start, instead of the file's")
    parser.add_argument("--check", action="store_true", help="say what would be taken, and write nothing")


def _audit_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=Path, metavar="DATA",
        help="a folder of pictures, LLaVA's JSON or JSONL, parquet, a webdataset tar, or a folder of parquets and tars",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint with a safety head")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="where the result goes; a stopped audit goes on there"
    )
    parser.add_argument("--images", default="", metavar="DIR", help="where paths in JSON and parquet start")
    parser.add_argument("--column", default="", metavar="NAME", help="parquet's column of pictures; default: the first")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE",
        help="corrects the counts: labelled pictures, not trained on (JSON or JSONL with image and safe_type)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="flag from this probability of any risk on; default: the arg-max"
    )
    parser.add_argument("--policy", metavar="FILE", help="YAML: what is not allowed by it is flagged")
    parser.add_argument(
        "--question", default="What is in the picture?", metavar="TEXT", help="what a head that reads text is asked"
    )
    parser.add_argument("--top", type=int, default=24, metavar="K", help="pictures per category in the gallery (24)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures per forward (64)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads that decode (a core each, to 16)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N",
        help="threads of a model on the CPU (torch's choice); the same in all processes, since last bits depend on it",
    )  # fmt: skip
    parser.add_argument("--shard", metavar="I/N", help="take the I-th of N shares; or launch with torchrun")
    parser.add_argument("--shard-size", type=int, default=2048, metavar="N", help="pictures per part on disk (2048)")
    parser.add_argument("--bench", action="store_true", help="compare the speed with the bare vision tower's")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    _model_flags(parser)


def _analyze_flags(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)
    for name, (describe, text) in ANALYSES.items():
        own = kinds.add_parser(name, help=text, description=text)
        own.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind, or a training run")
        own.add_argument(
            "--data", required=True, action="append", metavar="[NAME=]FILE",
            help="labelled pictures: training records, or rows with question, image, category, level; may be repeated",
        )  # fmt: skip
        own.add_argument("--out", required=True, metavar="DIR", help="summary.json and the figures, PNG and SVG")
        own.add_argument("--images", default="", metavar="DIR", help="where image paths start; default: their file")
        own.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
        own.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default 32)")
        own.add_argument("--device", default="auto", help="auto, cpu or cuda")
        _model_flags(own)
        describe(own)


def _tsne_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spaces", default="patches,safety,head", metavar="NAMES",
        help="joined by commas: patches, cls (original), safety, head (ours); default patches,safety,head",
    )  # fmt: skip
    parser.add_argument("--perplexity", type=float, default=30.0, help="at most a third of the pictures (default 30)")
    parser.add_argument("--iterations", type=int, default=1000, metavar="N", help="of the t-SNE (default 1000)")
    parser.add_argument(
        "--max-pictures", type=int, default=2000, metavar="N", help="of more, so many are drawn (default 2000)"
    )


def _detector_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--defense", default="safety-head", metavar="NAME", help="whose detector to measure (default safety-head)"
    )
    parser.add_argument("--policy", metavar="FILE", help="a policy instead of the checkpoint's own")


def _head_flags(parser: argparse.ArgumentParser) -> None:
    _detector_flags(parser)
    parser.add_argument("--by-group", action="store_true", help="every `group` (or `source`) of a file is a set")


def _calibration_flags(parser: argparse.ArgumentParser) -> None:
    _detector_flags(parser)
    parser.add_argument(
        "--test", action="append", default=[], metavar="[NAME=]FILE", help="fresh pictures to measure the result on"
    )
    parser.add_argument(
        "--target-fpr", type=float, default=0.05, metavar="P", help="clean pictures flagged, at most (default 0.05)"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="share of calibrations that keep to it (0.95)"
    )
    parser.add_argument("--per-category", action="store_true", help="a threshold for each, out of one target")
    parser.add_argument(
        "--spend-all", action="store_true", help="lowest threshold that keeps the promise, for more recall elsewhere"
    )
    parser.add_argument(
        "--trials", type=int, default=0, metavar="N", help="calibrate N times on a random quarter, measure on the rest"
    )
    parser.add_argument("--write", action="store_true", help="write it into the checkpoint's config.json too")


ANALYSES: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "tsne": (_tsne_flags, "Original against safety features in the plane, with silhouette and neighbour purity."),
    "head": (_head_flags, "How often the detector is right: per data set, category and level; curves."),
    "calibration": (_calibration_flags, "Temperatures, and a threshold that keeps to a false-positive rate."),
}


DESCRIPTIONS = {
    "check": "Look for every problem before a GPU is taken: of a recipe, a model, data, or this machine.",
    "train": "Train a stage: safevlm train RECIPE [--key.sub value …]; also under deepspeed and torchrun.",
    "merge": "Fold the LoRA into the LLM, compare logits, write a complete checkpoint.",
    "convert": "Turn an original LLaVA-v1.5 folder (full, projector, LoRA) into a transformers folder.",
    "mix": "Make the training data of both stages out of their sources: safevlm mix MIX --out DIR.",
    "chat": "Talk to a model with its guard on.",
    "analyze": "Figures and numbers about a checkpoint: tsne, head, calibration; the LLM is never loaded.",
    "audit": "Find risky pictures and doubles in a training set; the LLM is never loaded.",
}
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[..., int]]] = {
    "check": (_check_flags, _check),
    "train": (lambda parser: None, _train),
    "merge": (_merge_flags, _merge),
    "convert": (_convert_flags, _convert),
    "mix": (_mix_flags, _mix),
    "chat": (_chat_flags, _chat),
    "analyze": (_analyze_flags, _analyze),
    "audit": (_audit_flags, _audit),
}

if __name__ == "__main__":
    sys.exit(main())
