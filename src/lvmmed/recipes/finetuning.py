"""`lvmmed finetune`: train an encoder with a linear head on labels, and judge it.

Every seed starts from the same encoder (from its own where weights are random) and decides the
head's start, the order of images and the augmentation. All seeds are tested; the model that is
kept is that of the seed with the best balanced accuracy on val.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import Field, model_validator

from lvmmed.config import SEEDS, apply_overrides, are_seeds, did_you_mean, validated
from lvmmed.engine.device import choose_device
from lvmmed.engine.run_folder import RunFolder
from lvmmed.evaluation.cases import Predictions
from lvmmed.evaluation.comparison import FINETUNED
from lvmmed.recipes.judged_encoder import JudgedEncoder, load_judged
from lvmmed.recipes.judging import (
    Judgement,
    JudgingResult,
    Progress,
    override_words,
    write_judgement,
)
from lvmmed.recipes.labelled_images import (
    LabelledImages,
    image_warnings,
    load_labelled_images,
    settings_as_read,
    size_of_images,
)
from lvmmed.recipes.saved_classifier import LoadedClassifier, load_classifier, save_classifier
from lvmmed.tasks.classification import (
    Classifier,
    EpochRow,
    Examples,
    FitResult,
    FitSettings,
    fit,
    predict_probabilities,
)
from lvmmed.types import Card, InputError

__all__ = [
    "FinetuneSettings",
    "LoadedClassifier",
    "finetune",
    "finetune_classification",
    "load_classifier",
]

TASKS = ("classification",)


class FinetuneSettings(FitSettings):
    """How an encoder is fine-tuned."""

    backbone: str | None = None
    """Name in timm; needed where the weights do not say (random, a bare state dict)."""
    size_px: int | None = Field(None, ge=16, le=1024)
    """Side of the images in pixels; none = what the encoder was trained at."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One model is trained for each."""
    label_column: str | None = None
    """Column of a list that holds the classes; none = label."""
    split_seed: int = Field(0, ge=0)
    """Of splits that are made because the data has none."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    @model_validator(mode="after")
    def _check_seeds(self) -> "FinetuneSettings":
        if not are_seeds(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}, need {SEEDS}")
        return self


@dataclass(frozen=True, kw_only=True)
class _Tuned:
    """The outcome of one seed; the model of the best one only."""

    seed: int
    result: FitResult
    card: Card
    model: Classifier | None
    probabilities: Mapping[str, np.ndarray]


def finetune(
    task: str,
    data: Path | LabelledImages,
    weights: str,
    out: Path,
    *,
    backbone: str | None = None,
    settings: FinetuneSettings | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> JudgingResult:
    """Fine-tune for a task by its name; see `finetune_classification`.

    Args:
        task: one of `TASKS`.
        data: labelled images.
        weights: what `load_encoder` takes.
        out: run folder to create.
        backbone: short for `settings.backbone`.
        settings: how.
        overrides: `field=value` texts laid over the settings.
        progress: called with (done, total, note).

    Returns:
        Figures of val and of every test split.

    Raises:
        InputError: no such task.
    """
    if task not in TASKS:
        raise InputError(f"task: got {task!r}; {did_you_mean(task, TASKS)}")
    return finetune_classification(
        data,
        weights,
        out,
        backbone=backbone,
        settings=settings,
        overrides=overrides,
        progress=progress,
    )


def finetune_classification(
    data: Path | LabelledImages,
    weights: str,
    out: Path,
    *,
    backbone: str | None = None,
    settings: FinetuneSettings | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> JudgingResult:
    """Fine-tune once per seed, test every seed, and write a run folder.

    Args:
        data: labelled images, or what `load_labelled_images` made of them.
        weights: what `load_encoder` takes.
        out: run folder to create.
        backbone: short for `settings.backbone`.
        settings: how.
        overrides: `field=value` texts laid over the settings.
        progress: called with (epochs done, epochs of all seeds, note).

    Returns:
        Figures of val and of every test split. The folder gets config.yaml, environment.json,
        metrics.jsonl (one row an epoch and seed), result.json, cases.csv, and of the best seed
        encoder.safetensors, head.safetensors, card.json and classifier.json. Weights, data,
        settings or an `out` that cannot be used are refused with an InputError, and nothing is
        written then.
    """
    start_s = time.perf_counter()
    values = {**(settings or FinetuneSettings()).model_dump()}
    values |= {} if backbone is None else {"backbone": backbone}
    chosen = validated(FinetuneSettings, apply_overrides(values, overrides))
    RunFolder.refuse_occupied(out)
    device = choose_device(chosen.device)
    size_px = size_of_images(data, chosen.size_px)
    encoder = load_judged(weights, backbone=chosen.backbone, size_px=size_px, seed=chosen.seeds[0])
    images = load_labelled_images(
        data,
        size_px=encoder.size_px,
        seed=chosen.split_seed,
        label_column=chosen.label_column,
        progress=progress,
    )
    chosen = settings_as_read(chosen, data, images)
    tuned: list[_Tuned] = []
    for i, seed in enumerate(chosen.seeds):
        if i > 0:
            encoder = load_judged(weights, backbone=chosen.backbone, size_px=size_px, seed=seed)
        watch = _EpochWatch(progress, chosen, num_seeds_done=i)
        tuned.append(_tune(encoder, images, chosen, seed=seed, device=device, watch=watch))
        best = max(tuned, key=_rank)
        # one model is kept, so that many seeds of a large encoder fit in memory
        tuned = [outcome if outcome is best else replace(outcome, model=None) for outcome in tuned]
    judgement = Judgement(
        task="classification",
        weights=[weights],
        images=images,
        predictions=_tabulate(tuned, images),
        seeds=chosen.seeds,
        config_yaml=_config_yaml(weights, images, chosen),
        command=_command(weights, images, out, chosen),
        device=device,
        wall_s=time.perf_counter() - start_s,
        write_more=lambda folder: _write_more(folder, tuned, best, images),
        facts=_facts(tuned, best),
        warnings=image_warnings(best.card, images),
    )
    return write_judgement(judgement, out)


class _EpochWatch:
    """Turns epochs of one seed into progress over all seeds."""

    def __init__(
        self, progress: Progress | None, settings: FinetuneSettings, *, num_seeds_done: int
    ) -> None:
        self.progress = progress
        self.first = num_seeds_done * settings.epochs
        self.total = len(settings.seeds) * settings.epochs

    def __call__(self, row: EpochRow) -> None:
        """Report an epoch."""
        if self.progress is not None:
            note = f"val balanced accuracy {100 * row.val_balanced_accuracy:.1f}"
            self.progress(self.first + row.epoch, self.total, note)


def _tune(
    encoder: JudgedEncoder,
    images: LabelledImages,
    settings: FinetuneSettings,
    *,
    seed: int,
    device: torch.device,
    watch: _EpochWatch,
) -> _Tuned:
    """Train and test one model."""
    model = Classifier(
        encoder.backbone,
        num_classes=len(images.labelled.classes),
        generator=torch.Generator().manual_seed(seed),
        frozen=settings.frozen,
    )
    train, val = (
        Examples(images=images.images[split], labels=images.labels(split))
        for split in ("train", "val")
    )
    result = fit(model, train, val, settings, seed=seed, device=device, on_epoch=watch)
    predicted = {
        split: predict_probabilities(model, images.images[split], device=device)
        for split in images.splits_tested
    }
    return _Tuned(
        seed=seed, result=result, card=encoder.card, model=model.cpu(), probabilities=predicted
    )


def _rank(outcome: _Tuned) -> tuple[float, float]:
    return outcome.result.best.val_balanced_accuracy, -outcome.result.best.val_loss


def _tabulate(tuned: Sequence[_Tuned], images: LabelledImages) -> list[Predictions]:
    return [
        Predictions(
            model=FINETUNED,
            split=split,
            classes=images.labelled.classes,
            files=images.files(split),
            groups=images.groups(split),
            labels=images.labels(split),
            seeds=tuple(outcome.seed for outcome in tuned),
            probabilities=np.stack([outcome.probabilities[split] for outcome in tuned]),
        )
        for split in images.splits_tested
    ]


def _facts(tuned: Sequence[_Tuned], best: _Tuned) -> dict[str, Any]:
    card = best.card
    return {
        "recipe": card.recipe,
        "method": card.method,
        "backbone": card.backbone,
        "chosen_on_val": [
            {"model": FINETUNED, "seed": outcome.seed, **asdict(outcome.result.best)}
            for outcome in tuned
        ],
        "model_seed": best.seed,
        "fitted_on": "train",
    }


def _config_yaml(weights: str, images: LabelledImages, settings: FinetuneSettings) -> str:
    values = {
        "task": "classification",
        "weights": weights,
        "data": str(images.source),
        **settings.model_dump(mode="json"),
        "size_px": images.size_px,
    }
    return yaml.safe_dump(values, sort_keys=False)


def _command(
    weights: str, images: LabelledImages, out: Path, settings: FinetuneSettings
) -> list[str]:
    words = ["lvmmed", "finetune", "classification", "--data", str(images.source)]
    words += ["--weights", weights, "--out", str(out)]
    return words + override_words(FinetuneSettings(), settings)


def _write_more(
    folder: RunFolder, tuned: Sequence[_Tuned], best: _Tuned, images: LabelledImages
) -> None:
    """Write the epochs of all seeds, and the model of the best seed."""
    for outcome in tuned:
        for row in outcome.result.rows:
            folder.log({"seed": outcome.seed, **asdict(row)})
    assert best.model is not None
    save_classifier(
        folder, best.model, images, start=best.card, step=best.result.best.step, seed=best.seed
    )
