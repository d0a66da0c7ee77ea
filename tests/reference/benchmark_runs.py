"""Cells of a benchmark that cost nothing, and runs of them that go wrong as their names say.

Processes import these functions, so they lie in a module of their own.
"""

import json
import os
import signal
import time
from pathlib import Path

from lvmmed.recipes.benchmark_cells import Chain, JudgeCell, PretrainCell
from lvmmed.recipes.benchmark_suite import SuiteTask
from lvmmed.recipes.benchmark_work import run_cell
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.types import InputError

LOG = "log.txt"


def make_chain(folder, name, *, tasks=("a", "b"), is_trained=True, rate=None):
    """An encoder and its judgements; the names of their folders are the wishes of `run`."""
    pretrain = None
    if is_trained:
        config = resolve_config("simclr", ["model.backbone=test_efficientnet"], store="store")
        pretrain = PretrainCell(label=f"{name}, pre-training", config=config, path=folder / name)
    judges = tuple(
        JudgeCell(
            label=f"{name}, on {task}",
            task=SuiteTask(name=task, data="d", metrics=("linear.accuracy",)),
            data=Path("d"),
            weights=str(folder / name),
            backbone="test_efficientnet",
            size_px=32,
            seed=0,
            fractions=(1.0,),
            path=folder / f"{name}--{task}",
        )
        for task in tasks
    )
    return Chain(
        method=name,
        initialisation="scratch",
        seed=0,
        learning_rate=rate,
        pretrain=pretrain,
        judges=judges,
    )


def log_of(folder):
    """Cells in the order they were begun in: (name, process)."""
    path = folder / LOG
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def finish(cell, *, wall_s=2.0, **values):
    """Write what makes a cell finished, and its encoder fit to be judged."""
    cell.path.mkdir()
    (cell.path / "encoder.safetensors").touch()
    (cell.path / "result.json").write_text(json.dumps({"wall_s": wall_s, **values}))


def run(cell, **_):
    """Do what the name of the cell's folder says: finish, or go wrong in some way."""
    wish = cell.path.name
    with (cell.path.parent / LOG).open("a") as file:
        file.write(f"{wish} {os.getpid()}\n")
    flag = cell.path.with_name(f"{wish}.was-killed")
    if wish.endswith("kill") or (wish.endswith("kill-once") and not flag.exists()):
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if wish.endswith("leave"):
        os._exit(3)
    if wish.endswith("raise"):
        raise RuntimeError("no luck\nin this line either")
    if wish.endswith("refuse"):
        raise InputError("train.steps: got 0")
    finish(cell)


def run_badly(cell, *, progress=None):
    """Run a real cell, but for the pre-training of lvm-med and the judging of simclr."""
    if isinstance(cell, PretrainCell) and cell.label.startswith("lvm-med"):
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(cell, JudgeCell) and cell.label.startswith("simclr"):
        raise RuntimeError("planned")
    run_cell(cell, progress=progress)


def run_and_tell_gpu(cell, *, progress=None):
    """Finish, tell how far it is, and write down the GPUs that the process was given."""
    if progress is not None:
        progress(1, 4, "a note")
        progress(2, 4, "too soon after the first")
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    time.sleep(0.3)  # so that the other process takes a cell too
    finish(cell, gpu=gpu)
