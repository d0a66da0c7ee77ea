"""Doing what a cell of a benchmark asks, and checking before that it can be done."""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lvmmed.config import apply_overrides, did_you_mean, validated
from lvmmed.engine.run_folder import CONFIG
from lvmmed.evaluation.classification import METRICS
from lvmmed.evaluation.comparison import FINETUNED, metric_key
from lvmmed.evaluation.segmentation import OVERLAPS
from lvmmed.recipes.benchmark_cells import Cell, JudgeCell, PretrainCell
from lvmmed.recipes.benchmark_suite import SuiteTask
from lvmmed.recipes.finetuning import FinetuneSettings, finetune
from lvmmed.recipes.labelled_images import LabelledImages, load_labelled_images
from lvmmed.recipes.masked_images import load_masked_images
from lvmmed.recipes.pretraining import pretrain
from lvmmed.recipes.probe_trials import probe_name
from lvmmed.recipes.probing import ProbeSettings, probe
from lvmmed.recipes.segmentation_probing import SegmentationProbeSettings, probe_segmentation
from lvmmed.types import InputError

JudgeSettings = ProbeSettings | SegmentationProbeSettings | FinetuneSettings

_KINDS: dict[str, type[JudgeSettings]] = {
    "probe": ProbeSettings,
    "segmentation": SegmentationProbeSettings,
    "finetune": FinetuneSettings,
}
Progress = Callable[[float, float, str], None]


def run_cell(cell: Cell, *, progress: Progress | None = None) -> None:
    """Run one cell, unless it is finished; a pre-training that was cut off goes on.

    One whose encoder is gone begins anew.

    Args:
        cell: what to do.
        progress: told of every step.
    """
    if isinstance(cell, PretrainCell):
        if cell.has_encoder:
            return
        was_begun = (cell.path / CONFIG).is_file() and not cell.folder.is_finished
        if cell.path.exists() and not was_begun:
            shutil.rmtree(cell.path)  # cut off before it had begun, or without its encoder
        pretrain(cell.config, cell.path, resume=cell.path.exists(), progress=progress)
    elif not cell.folder.is_finished:
        _judge(cell, progress)


def refuse_bad_task(task: SuiteTask, fractions: Sequence[float]) -> None:
    """Refuse settings that judging does not have, and scores that it does not give.

    Args:
        task: of the suite.
        fractions: shares of the labels.

    Raises:
        InputError: names the field, and what is allowed.
    """
    settings = _settings(task, {"fractions": fractions})
    allowed = _score_names(settings)
    for metric in task.metrics:
        if metric not in allowed:
            hint = did_you_mean(metric, allowed)
            raise InputError(f"tasks.{task.name}.metrics: got {metric!r}; {hint}")
    if not task.metrics:
        raise InputError(f"tasks.{task.name}.metrics: got none; name one of {', '.join(allowed)}")


def draws_by_seed(task: SuiteTask, fractions: Sequence[float]) -> bool:
    """Whether a judgement of one and the same encoder differs from seed to seed.

    Args:
        task: of the suite.
        fractions: shares of the labels.

    Returns:
        True where a head is fine-tuned, or few labels are drawn.
    """
    settings = _settings(task, {"fractions": fractions})
    return isinstance(settings, FinetuneSettings) or any(frac < 1 for frac in settings.fractions)


def _score_names(settings: JudgeSettings) -> list[str]:
    if isinstance(settings, FinetuneSettings):
        return [metric_key(FINETUNED, metric) for metric in METRICS]
    is_map = isinstance(settings, SegmentationProbeSettings)
    return [
        metric_key(probe_name(name, frac), metric)
        for frac in settings.fractions
        for name in (("linear",) if is_map else ("linear", "knn"))
        for metric in (OVERLAPS if is_map else METRICS)
    ]


def _settings(task: SuiteTask, given: dict[str, object]) -> JudgeSettings:
    """Settings of judging: what is given, and the task's overrides over it."""
    kind = _KINDS[task.kind]
    values = {name: value for name, value in given.items() if name in kind.model_fields}
    return validated(kind, apply_overrides(values, task.overrides), prefix=f"tasks.{task.name}.")


def _judge(cell: JudgeCell, progress: Progress | None) -> None:
    given: dict[str, object] = {
        "backbone": cell.backbone,
        "size_px": cell.size_px,
        "seeds": (cell.seed,),
        "fractions": cell.fractions,
    }
    settings = _settings(cell.task, given)
    data, size_px = str(cell.data), settings.size_px or cell.size_px
    weights, out = cell.weights, cell.path
    if isinstance(settings, SegmentationProbeSettings):
        masked = _masked(data, size_px, settings.split_seed, settings.stretch_masks)
        probe_segmentation(weights, masked, out, settings=settings, progress=progress)
        return
    labelled = _images(data, size_px, settings.split_seed, settings.label_column)
    if isinstance(settings, FinetuneSettings):
        finetune("classification", labelled, weights, out, settings=settings, progress=progress)
    else:
        probe(weights, labelled, out, settings=settings, progress=progress)


@functools.lru_cache(maxsize=8)
def _images(data: str, size_px: int, seed: int, label_column: str | None) -> LabelledImages:
    return load_labelled_images(Path(data), size_px=size_px, seed=seed, label_column=label_column)


@functools.lru_cache(maxsize=8)
def _masked(data: str, size_px: int, seed: int, stretch_masks: bool) -> LabelledImages:
    return load_masked_images(Path(data), size_px=size_px, seed=seed, stretch_masks=stretch_masks)
