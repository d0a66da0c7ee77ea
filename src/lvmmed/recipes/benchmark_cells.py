"""The cells of a benchmark, each known by its content.

A cell is a run folder whose name carries a hash of everything that decides its result: settings,
weights and data. A cell that is there and finished is never run again, whatever suite asked for it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmmed.config import RunConfig
from lvmmed.engine.run_folder import RunFolder
from lvmmed.models.weights import ENCODER
from lvmmed.recipes.benchmark_keys import content_key, file_name, folder_key, weights_key
from lvmmed.recipes.benchmark_places import Places
from lvmmed.recipes.benchmark_suite import (
    UNTRAINED,
    WATCH,
    Suite,
    SuiteInitialisation,
    SuiteTask,
)
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.resumption import MAY_DIFFER, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class PretrainCell:
    """Pre-training of one method from one initialisation with one seed.

    Attributes:
        label: names the cell to the user.
        config: of the run.
        path: run folder.
    """

    label: str
    config: RunConfig
    path: Path

    @property
    def folder(self) -> RunFolder:
        """The run, begun or not."""
        return RunFolder(self.path)

    @property
    def has_encoder(self) -> bool:
        """Whether it is finished and its encoder can be judged."""
        return self.folder.is_finished and (self.path / ENCODER).is_file()


@dataclass(frozen=True, kw_only=True)
class JudgeCell:
    """Judging one encoder on one task.

    Attributes:
        label: names the cell to the user.
        task: what it is judged on.
        data: labelled images.
        weights: what `load_encoder` takes.
        backbone: name in timm, for weights that do not say.
        size_px: side of the images.
        seed: of random weights and few-shot subsets.
        fractions: shares of the labels.
        path: run folder.
    """

    label: str
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


Cell = PretrainCell | JudgeCell


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One encoder with all that it is judged on.

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
    def cells(self) -> tuple[Cell, ...]:
        """All cells in the order they are run in."""
        return (*((self.pretrain,) if self.pretrain else ()), *self.judges)

    @property
    def is_given(self) -> bool:
        """Whether it judges weights that were given: neither trained here nor drawn by the seed."""
        return self.pretrain is None and any(cell.weights != "random" for cell in self.judges)

    def failure(self, task: SuiteTask, reasons: Mapping[str, str]) -> str | None:
        """Say why the encoder has no score on a task.

        Args:
            task: what it was to be judged on.
            reasons: label of a cell -> why it failed.

        Returns:
            The reason of its pre-training or judging; None where neither failed.
        """
        wanted = [cell for cell in self.cells if cell is self.pretrain or _is_of(cell, task)]
        return next((reasons[cell.label] for cell in wanted if cell.label in reasons), None)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A suite on a machine: where its data and its cells lie.

    Attributes:
        suite: what to compare.
        places: where its paths are looked for.
        store: image store to train on.
        store_fingerprint: of its content.
        cells: folder of the cells.
    """

    suite: Suite
    places: Places
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
        weights = self.places.find_weights(start)
        rate = f", learning rate {learning_rate:g}" if learning_rate else ""
        label = f"{method} ({start.name}), seed {seed}{rate}"
        if method == UNTRAINED:
            cell = None
            size_px = self.config("lvm-med", start, ()).views.size
            name, content = f"{UNTRAINED}-{start.name}-s{seed}", weights_key(weights)
        else:
            cell = self._pretrain_cell(label, method, start, seed, learning_rate)
            size_px = cell.config.views.size
            weights, name, content = str(cell.path), cell.path.name, cell.path.name
        judges = []
        for task in self.suite.tasks:
            side = task.size_px or size_px
            decides = _judging_fields(task)
            shared = [start.backbone, side, seed, list(self.suite.fractions)]
            data = self.places.find(task.data, field=f"tasks.{task.name}.data")
            images = folder_key(data, with_masks=task.kind == "segmentation")
            key = content_key(decides, content, shared, images)
            judges.append(
                JudgeCell(
                    label=f"{label}, on {task.name}",
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

    def config(
        self, recipe: str, start: SuiteInitialisation, overrides: Sequence[str]
    ) -> RunConfig:
        """Configuration of pre-training by a recipe from an initialisation."""
        settings = [
            *self.suite.overrides,
            f"model.backbone={start.backbone}",
            f"model.weights={self.places.find_weights(start)}",
            *start.overrides,
            *overrides,
        ]
        return resolve_config(recipe, settings, store=str(self.store))

    def learning_rate(self, method: str, start: SuiteInitialisation) -> float:
        """Peak learning rate of the recipe, with the suite's overrides."""
        return self.method_config(method, start).train.learning_rate

    def method_config(
        self, method: str, start: SuiteInitialisation, overrides: Sequence[str] = ()
    ) -> RunConfig:
        """Configuration of pre-training by a method of the suite from an initialisation."""
        chosen = next(one for one in self.suite.methods if one.name == method)
        return self.config(chosen.recipe, start, [*chosen.overrides, *overrides])

    def _watched(self) -> list[str]:
        """Setting of the images that are probed while methods train; no part of a cell's hash."""
        if self.suite.watch is None:
            return []
        path = self.places.find(self.suite.watch, field=WATCH)
        return [f"log.probe_data={json.dumps(str(path))}"]

    def _pretrain_cell(
        self,
        label: str,
        method: str,
        start: SuiteInitialisation,
        seed: int,
        learning_rate: float | None,
    ) -> PretrainCell:
        rate = [f"train.learning_rate={learning_rate}"] if learning_rate else []
        settings = [f"train.seed={seed}", *rate, *self._watched()]
        config = self.method_config(method, start, settings)
        decides = _without(config.model_dump(mode="json"), (*MAY_DIFFER, WEIGHTS))
        key = content_key(
            decides, weights_key(self.places.find_weights(start)), self.store_fingerprint
        )
        name = f"{method}-{start.name}-s{seed}-{key}"
        return PretrainCell(
            label=f"{label}, pre-training", config=config, path=self.cells / file_name(name)
        )


def unique_cells(chains: Iterable[Chain]) -> list[Cell]:
    """Every cell of some chains once, in their order; two chains may share one."""
    return list({cell.path: cell for chain in chains for cell in chain.cells}.values())


def _is_of(cell: Cell, task: SuiteTask) -> bool:
    return isinstance(cell, JudgeCell) and cell.task.name == task.name


def _judging_fields(task: SuiteTask) -> dict[str, Any]:
    """What decides a judgement besides encoder and images; where images lie does not."""
    fields = task.model_dump(mode="json", exclude={"name", "metrics", "shifted"})
    is_whole_path = Path(task.data).expanduser().is_absolute()
    return {**fields, "data": None} if is_whole_path else fields


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Leave out fields named "group.field"."""
    gone = {tuple(name.split(".")) for name in names}
    return {
        group: {k: v for k, v in fields.items() if (group, k) not in gone}
        if isinstance(fields, Mapping)
        else fields
        for group, fields in values.items()
    }
