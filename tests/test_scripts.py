"""The shell scripts print what they run, and the recipes for the real models keep to the published batch."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from safevlm.__main__ import parser_for
from safevlm.training import updates
from safevlm.training.recipe import parse
from tests.evaluation.world_of_runs import write_suite

ROOT = Path(__file__).parents[1]
REAL = sorted((ROOT / "safevlm" / "recipes").glob("llava*b_*.yaml"))
FAMILIES = sorted((ROOT / "safevlm" / "recipes").glob("vlm_*.yaml"))
BATCH, TENSOR_BATCH = 128, 16
"""Effective batch of both stages (methods §1.5)."""


def _command(script: str, *words: str, **environment: str) -> list[str]:
    """What a script prints with DRY_RUN."""
    clean = {key: value for key, value in os.environ.items() if key not in ("RECIPE", "LAUNCHER", "GPUS", "NODES")}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *words],
        cwd=ROOT,
        env={**clean, "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


@pytest.mark.parametrize("stage", [1, 2])
def test_stage_script_prints_a_command_that_the_recipe_parser_takes(stage: int) -> None:
    command = _command(f"stage{stage}.sh", "my model", "data/a.jsonl", "runs/out", "--optim.lr", "0.5")
    assert command[:3] == ["deepspeed", "--num_gpus", "8"] and command[3:6] == ["--module", "safevlm", "train"]
    recipe = parse(command[6:])
    assert recipe.stage == f"stage{stage}" and recipe.model.path == "my model"
    assert (recipe.data.train, recipe.run.out, recipe.optim.lr) == (["data/a.jsonl"], "runs/out", 0.5)


@pytest.mark.parametrize("file", FAMILIES, ids=lambda file: file.stem)
def test_recipes_of_other_families_are_started_by_the_same_scripts(file: Path) -> None:
    stage = parse([file.stem]).stage
    command = _command(f"{stage}.sh", "models/qwen", "data/a.jsonl", "runs/out", RECIPE=file.stem)
    recipe = parse(command[command.index("train") + 1 :])
    assert (recipe.stage, recipe.model.path, recipe.run.out) == (stage, "models/qwen", "runs/out")


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        ({"GPUS": "4"}, "deepspeed --num_gpus 4 --module"),
        ({"NODES": "2", "HOSTFILE": "hosts"}, "deepspeed --hostfile hosts --num_nodes 2 --num_gpus 8 --module"),
        ({"LAUNCHER": "torchrun", "GPUS": "2"}, "torchrun --nproc_per_node 2 --module"),
        (
            {"LAUNCHER": "torchrun", "NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"},
            "torchrun --nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr first --master_port 29500 --module",
        ),
        ({"LAUNCHER": "none"}, "safevlm train"),
    ],
)
def test_launchers(environment: dict[str, str], start: str) -> None:
    assert " ".join(_command("stage1.sh", "m", "d", "o", **environment)).startswith(start)


def test_several_nodes_without_a_hostfile_are_an_error_that_names_it() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/stage1.sh"), "m", "d", "o"],
        env={**os.environ, "NODES": "2", "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "HOSTFILE" in done.stderr


def test_merge_script_passes_its_flags_on() -> None:
    assert _command("merge.sh", "run", "out", "--stock") == ["safevlm", "merge", "run", "--out", "out", "--stock"]


def test_there_is_a_recipe_for_every_way_and_size() -> None:
    ways = (
        "stage1",
        "stage1_head_only",
        "stage2",
        "stage2_qlora",
        "refusal_lora",
        "security_tensor_textual",
        "security_tensor_visual",
    )
    for_7b = ("robust_tower", "stage1_robust")
    both = {f"llava{size}_{way}" for size in ("7b", "13b") for way in ways}
    assert {file.stem for file in REAL} == both | {f"llava7b_{way}" for way in for_7b}


@pytest.mark.parametrize("file", [*REAL, *FAMILIES], ids=lambda file: file.stem)
def test_effective_batch_is_the_published_one(file: Path) -> None:
    """SafeVLM's; what the tensors' paper says of its batch is too small for a GPU (methods §3.2)."""
    recipe = parse([str(file)])
    wanted = TENSOR_BATCH if recipe.stage == "security_tensor" else BATCH
    for processes in (1, 2, 8 if wanted == BATCH else 1):
        assert updates.effective_batch(recipe.optim, processes) == wanted


@pytest.mark.parametrize("file", [file for file in REAL if "13b" in file.stem], ids=lambda file: file.stem)
def test_both_sizes_differ_only_where_they_must(file: Path) -> None:
    """7B and 13B: the folder, and what a GPU holds."""
    twin = Path(str(file).replace("13b", "7b"))
    mine, theirs = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (file, twin))
    for recipe in (mine, theirs):
        recipe["model"].pop("path")
        for key in ("batch_size", "gradient_checkpointing"):
            recipe["optim"].pop(key, None)
    assert mine == theirs


SHELL = sorted(
    file for room in ("scripts", "eval") for kind in ("*.sh", "*.sbatch") for file in (ROOT / room).rglob(kind)
)
SOURCED = {"scripts/launch.sh", "eval/evaluate.sh"}
DRY_RUNS = {
    "scripts/stage1.sh": "m d o",
    "scripts/stage2.sh": "m d o --optim.lr 0.5",
    "scripts/merge.sh": "run o --stock",
    "scripts/train_defenses.sh": "m d o",
    "scripts/slurm/audit.sbatch": "d m o --threads 1",
    "scripts/slurm/stage1.sbatch": "m d o",
    "scripts/slurm/stage2.sbatch": "m d o",
    "eval/rtvlm.sh": "m d o --judge-model j",
    "eval/all.sh": "m {data} o --judge-model j",
    "eval/all_tables.sh": "out",
    "eval/compare_defenses.sh": "m d o",
    "eval/robustness.sh": "d o n=m=none",
    "eval/robust_stack.sh": "b r o",
    "eval/ablations/safevlm.sh": "m {data} o",
}
"""Arguments of every script that knows DRY_RUN; `{data}` is a folder with the miniature's suite."""
MANY = ("eval/ablations/safevlm.sh", "eval/compare_defenses.sh")
"""Which print many commands."""
SLURM = {
    **{"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7", "SLURM_NODEID": "1"},
    **{"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"},
}
STANDINS = {"scontrol": "echo first", "srun": 'shift; exec "$@"'}
"""Of Slurm's own commands."""


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_shell_files_parse(file: Path) -> None:
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_script_that_can_be_tried_is_tried_here() -> None:
    names = {
        str(file.relative_to(ROOT)) for file in SHELL if "launch.sh" in (text := file.read_text()) or "DRY_RUN" in text
    }
    assert names - SOURCED - {"eval/ablations/security_tensor.sh"} <= set(DRY_RUNS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("data"), per_group=1)


@pytest.mark.parametrize(
    "script", [pytest.param(script, marks=pytest.mark.slow if script in MANY else ()) for script in DRY_RUNS]
)
def test_every_command_that_a_script_prints_is_understood(script: str, data: Path, tmp_path: Path) -> None:
    for name, line in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        **SLURM,
        "DRY_RUN": "1",
        "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SUITES" if script == "eval/all.sh" else "SUITE": "miniature",
        "SEEDS": "runs/a" if "compare" in script else "256",
    }
    words = DRY_RUNS[script].replace("{data}", str(data)).split()
    done = subprocess.run(
        ["bash", str(ROOT / script), *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if "safevlm " in line and "==" not in line]
    assert lines, done.stdout
    for line in lines:
        command = line[line.index("safevlm") + 1 :]
        if command[0] == "train":
            parse(command[1:])
        else:
            parser_for(command[0]).parse_args(command)


def _task(number: int, *words: str, first: int = 0, count: int = 3, **environment: str) -> tuple[int, list[list[str]]]:
    """Exit code and commands of a task of the audit's array."""
    array = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_MIN": first, "SLURM_ARRAY_TASK_COUNT": count}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/slurm/audit.sbatch"), *words],
        env={
            **{key: value for key, value in os.environ.items() if key not in ("SHARES", "PARTS")},
            **{key: str(value) for key, value in array.items()},
            "SLURM_SUBMIT_DIR": str(ROOT),
            "DRY_RUN": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("number", "first", "count", "shares", "share"),
    [(0, 0, 3, "", "1/3"), (2, 0, 3, "", "3/3"), (7, 3, 2, "64", "8/64"), (7, 3, 2, "", None), (64, 3, 2, "64", None)],
    ids=str,
)
def test_a_task_of_an_audits_array_takes_its_share_or_ends(
    number: int, first: int, count: int, shares: str, share: str | None
) -> None:
    code, commands = _task(number, "d", "m", "o", first=first, count=count, SHARES=shares)
    taken = [one[one.index("--shard") + 1] for one in commands]
    assert (code, taken) == ((0, [share]) if share else (2, []))


def test_an_array_deals_out_every_part_once(tmp_path: Path) -> None:
    for name in ("a", "b b", "c", "d"):
        (tmp_path / name).mkdir()
    dealt = [_task(number, str(tmp_path), "m", "o", "--top", "3", PARTS="1") for number in range(3)]
    assert [code for code, _ in dealt] == [0, 0, 0]
    parsed = [parser_for("audit").parse_args(one[1:]) for _, commands in dealt for one in commands]
    assert sorted((str(one.data), str(one.out)) for one in parsed) == [
        (str(tmp_path / name), f"o/{name}") for name in ("a", "b b", "c", "d")
    ]
    assert all(one.shard is None and one.top == 3 for one in parsed)
    assert _task(0, str(tmp_path / "a"), "m", "o", PARTS="1")[0] == 2, "no parts in it"


def test_all_tables_copies_only_files_that_are_among_the_committed_results() -> None:
    """A figure that is no longer drawn would fail its step at the end of a night."""
    done = subprocess.run(
        ["bash", str(ROOT / "eval/all_tables.sh"), "OUT"],
        cwd=ROOT,
        env={**os.environ, "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    copies = "\n".join(
        f"printf '%s\\n' {line[3:]}; echo" for line in done.stdout.splitlines() if line.startswith("cp ")
    )
    written = subprocess.run(["bash", "-c", copies], capture_output=True, text=True, check=True).stdout.split("\n\n")
    found = []
    for *files, to in (block.split() for block in written if block.strip()):
        target = ROOT / "eval" / Path(to).relative_to("OUT")
        found += [target / Path(file).name if to.endswith("/") else target for file in files if "*" not in file]
    assert len(found) > 10
    assert not [file for file in found if not file.is_file()]
