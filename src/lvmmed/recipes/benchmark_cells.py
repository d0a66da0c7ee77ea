"""The cells of a benchmark, each known by its content, and doing what one of them asks.

A cell is a run folder whose name carries a hash of everything that decides its result: settings,
weights and data. A cell that is there and finished is never run again, whatever suite asked for it;
one that was cut off goes on from its last checkpoint, or starts over.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmmed.config import RunConfig
from lvmmed.engine.run_folder import CONFIG, RunFolder
from lvmmed.files import file_sha256
from lvmmed.recipes.benchmark_suite import UNTRAINED, Suite, SuiteInitialisation, SuiteTask
from lvmmed.recipes.finetuning import finetune
from lvmmed.recipes.labelled_images import LabelledImages, load_labelled_images
from lvmmed.recipes.masked_images import load_masked_images
from lvmmed.recipes.pretraining import MAY_DIFFER, pretrain
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.probing import probe
from lvmmed.recipes.segmentation_probing import probe_segmentation

LIST_SUFFIXES = (".csv", ".parquet", ".json")
"""Files of a labelled set whose content counts: labels and splits may change at one size."""

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True, kw_only=True)
class PretrainCell:
    """Pre-training of one method from one initialisation with one seed.

    Attributes:
        config: of the run.
        path: run folder.
    """

    config: RunConfig
    path: Path

    @property
    def folder(self) -> RunFolder:
        """The run, begun or not."""
        return RunFolder(self.path)


@dataclass(frozen=True, kw_only=True)
class JudgeCell:
    """Judging one encoder on one task.

    Attributes:
        task: what it is judged on.
        data: labelled images.
        weights: what `load_encoder` takes.
        backbone: name in timm, for weights that do not say.
        size_px: side of the images.
        seed: of random weights and few-shot subsets.
        fractions: shares of the labels.
        path: run folder.
    """

    task: SuiteTask
    data: Path
    weights: str
    backbone: str
    size_px: int
    seed: int
    fractions: tuple[float, ...]
    path: Path

    @property
    def folder(self) -> RunFolder:
        """The run, begun or not."""
        return RunFolder(self.path)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One encoder with all that it is judged on: what one process does from start to end.

    Attributes:
        method: row of the table; "untrained" for weights before training.
        initialisation: where training starts.
        seed: of pre-training.
        learning_rate: peak, where it is one of several to choose from.
        pretrain: None for untrained weights.
        judges: one a task.
    """

    method: str
    initialisation: str
    seed: int
    learning_rate: float | None
    pretrain: PretrainCell | None
    judges: tuple[JudgeCell, ...]

    @property
    def cells(self) -> tuple[PretrainCell | JudgeCell, ...]:
        """All cells in the order they are run in."""
        return (*((self.pretrain,) if self.pretrain else ()), *self.judges)

    @property
    def label(self) -> str:
        """Names the chain to the user."""
        rate = f", learning rate {self.learning_rate:g}" if self.learning_rate else ""
        return f"{self.method} ({self.initialisation}), seed {self.seed}{rate}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A suite on a machine: where its data and its cells lie.

    Attributes:
        suite: what to compare.
        root: folder of data.
        store: image store to train on.
        store_fingerprint: of its content.
        cells: folder of the cells.
    """

    suite: Suite
    root: Path
    store: Path
    store_fingerprint: str
    cells: Path

    def chain(
        self,
        method: str,
        start: SuiteInitialisation,
        seed: int,
        *,
        learning_rate: float | None = None,
    ) -> Chain:
        """Plan one encoder and what it is judged on.

        Args:
            method: name in the suite, or "untrained".
            start: initialisation.
            seed: of pre-training.
            learning_rate: peak; None = the recipe's.

        Returns:
            The chain; an InputError names a recipe or field that cannot be.
        """
        weights = self.weights_of(start)
        if method == UNTRAINED:
            cell = None
            size_px = self.config("lvm-med", start, ()).views.size
            name, content = f"{UNTRAINED}-{start.name}-s{seed}", _weights_key(weights)
        else:
            cell = self._pretrain_cell(method, start, seed, weights, learning_rate)
            size_px = cell.config.views.size
            weights, name, content = str(cell.path), cell.path.name, cell.path.name
        judges = []
        for task in self.suite.tasks:
            side = task.size_px or size_px
            decides = task.model_dump(mode="json", exclude={"name", "metrics", "shifted"})
            shared = [start.backbone, side, seed, list(self.suite.fractions)]
            data = self.root / task.data
            key = content_key(decides, content, shared, folder_key(data))
            judges.append(
                JudgeCell(
                    task=task,
                    data=data,
                    weights=weights,
                    backbone=start.backbone,
                    size_px=side,
                    seed=seed,
                    fractions=self.suite.fractions,
                    path=self.cells / file_name(f"{name}--{task.name}-{key}"),
                )
            )
        return Chain(
            method=method,
            initialisation=start.name,
            seed=seed,
            learning_rate=learning_rate,
            pretrain=cell,
            judges=tuple(judges),
        )

    def weights_of(self, start: SuiteInitialisation) -> str:
        """Weights of an initialisation: a file below the data or the working folder, or a name."""
        below = self.root / start.weights
        return str(below) if below.exists() and start.weights != "random" else start.weights

    def config(
        self, recipe: str, start: SuiteInitialisation, overrides: Sequence[str]
    ) -> RunConfig:
        """Configuration of pre-training by a recipe from an initialisation."""
        settings = [
            *self.suite.overrides,
            f"model.backbone={start.backbone}",
            f"model.weights={self.weights_of(start)}",
            *start.overrides,
            *overrides,
        ]
        return resolve_config(recipe, settings, store=str(self.store))

    def _pretrain_cell(
        self,
        method: str,
        start: SuiteInitialisation,
        seed: int,
        weights: str,
        learning_rate: float | None,
    ) -> PretrainCell:
        chosen = next(one for one in self.suite.methods if one.name == method)
        rate = [f"train.learning_rate={learning_rate}"] if learning_rate else []
        overrides = [*chosen.overrides, f"train.seed={seed}", *rate]
        config = self.config(chosen.recipe, start, overrides)
        decides = _without(config.model_dump(mode="json"), (*MAY_DIFFER, "model.weights"))
        key = content_key(decides, _weights_key(weights), self.store_fingerprint)
        name = f"{method}-{start.name}-s{seed}-{key}"
        return PretrainCell(config=config, path=self.cells / file_name(name))


def content_key(*parts: Any) -> str:
    """Hash of what decides a result; ten hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def file_name(text: str) -> str:
    """A name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


@functools.cache
def folder_key(folder: Path) -> str:
    """Hash of a folder of labelled images: names and sizes of its files, contents of its lists.

    Read once a process: it is not to change while a benchmark runs.

    Args:
        folder: of labelled images, or a list.

    Returns:
        Hash; the same wherever the folder lies.
    """
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    entries = [
        [
            path.relative_to(folder).as_posix(),
            path.stat().st_size,
            file_sha256(path) if path.suffix in LIST_SUFFIXES else None,
        ]
        for path in files
    ]
    return content_key(entries)


@functools.cache
def _weights_key(weights: str) -> str:
    path = Path(weights)
    return file_sha256(path) if path.is_file() else weights


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Leave out fields named "group.field"."""
    gone = {tuple(name.split(".")) for name in names}
    return {
        group: {k: v for k, v in fields.items() if (group, k) not in gone}
        if isinstance(fields, Mapping)
        else fields
        for group, fields in values.items()
    }


def run_cell(cell: PretrainCell | JudgeCell, *, progress: Progress | None = None) -> None:
    """Run one cell, unless it is finished; one that was cut off goes on.

    Args:
        cell: what to do.
        progress: told of every step.
    """
    if cell.folder.is_finished:
        return
    if isinstance(cell, PretrainCell):
        if cell.path.exists() and not (cell.path / CONFIG).is_file():
            shutil.rmtree(cell.path)  # cut off before it had begun
        pretrain(cell.config, cell.path, resume=cell.path.exists(), progress=progress)
        return
    _judge(cell, progress)


def _judge(cell: JudgeCell, progress: Progress | None) -> None:
    data = str(cell.data)
    overrides = [
        f"backbone={cell.backbone}",
        f"size_px={cell.size_px}",
        f"seeds=[{cell.seed}]",
        *cell.task.overrides,
    ]
    fractions = f"fractions={list(cell.fractions)}"
    if cell.task.kind == "finetune":
        images = _images(data, cell.size_px)
        finetune(
            "classification",
            images,
            cell.weights,
            cell.path,
            overrides=overrides,
            progress=progress,
        )
    elif cell.task.kind == "segmentation":
        masked = _masked(data, cell.size_px)
        overrides = [fractions, *overrides]
        probe_segmentation(cell.weights, masked, cell.path, overrides=overrides, progress=progress)
    else:
        labelled = _images(data, cell.size_px)
        overrides = [fractions, *overrides]
        probe(cell.weights, labelled, cell.path, overrides=overrides, progress=progress)


@functools.lru_cache(maxsize=8)
def _images(data: str, size_px: int) -> LabelledImages:
    return load_labelled_images(Path(data), size_px=size_px)


@functools.lru_cache(maxsize=8)
def _masked(data: str, size_px: int) -> LabelledImages:
    return load_masked_images(Path(data), size_px=size_px)
