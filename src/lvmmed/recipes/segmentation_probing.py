"""`lvmmed probe --task segmentation`: what a frozen encoder's feature map says about masks.

A seed decides what is random, as in `probing`: the weights of a random encoder, which cases a
few-shot subset has, and which positions of the maps are drawn where there are more than
`max_positions`. A given encoder with all training cases is probed once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from lvmmed.engine.device import choose_device
from lvmmed.engine.run_folder import RunFolder
from lvmmed.evaluation.segmentation import overlap_scores
from lvmmed.probes import MAX_POSITIONS, REGULARISATION_CHOICES
from lvmmed.recipes.judging import Judgement, JudgingResult, Progress, write_judgement
from lvmmed.recipes.labelled_images import (
    LabelledImages,
    image_warnings,
    settings_as_read,
    size_of_images,
)
from lvmmed.recipes.masked_images import load_masked_images
from lvmmed.recipes.probe_settings import (
    EncoderProbeSettings,
    config_yaml,
    load_encoders,
    named_weights,
    probe_command,
    resolve_probe_settings,
)
from lvmmed.recipes.segmentation_overlays import NUM_SHOWN, spread_by_score, write_overlays
from lvmmed.recipes.segmentation_trials import (
    MapSource,
    MapTrial,
    predicted_of,
    run_map_trials,
    tabulate_overlaps,
)
from lvmmed.types import Card

TASK = "probe-segmentation"
OVERLAYS = "overlays.png"
LEAST_MAP = 3
"""Positions a side under which Dice says nothing. Measured on Kvasir-SEG with random weights:
2 x 2 positions of a ResNet-18 reach 0.22, less than calling every pixel foreground (0.24); 3 x 3
of a ResNet-10-T reach 0.36."""


class SegmentationProbeSettings(EncoderProbeSettings):
    """How an encoder is probed on images with masks."""

    stretch_masks: bool = False
    """Take masks of another size than their image; both are stretched to the square then."""
    max_positions: int = Field(MAX_POSITIONS, ge=100)
    """Positions of the training maps to fit on; of more, as many are drawn, by class."""


def probe_segmentation(
    weights: str | Sequence[str],
    data: Path | LabelledImages,
    out: Path,
    *,
    backbone: str | None = None,
    size_px: int | None = None,
    settings: SegmentationProbeSettings | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> JudgingResult:
    """Probe frozen weights on images with masks and write a run folder.

    A linear classifier is fitted on the positions of the last feature map of the training images;
    the strength of regularisation is chosen on val by mean Dice; the prediction is tested once on
    every test split, at the size of the square.

    Args:
        weights: what `load_encoder` takes; several are one encoder a seed, such as the encoders of
            several pre-training seeds, and are judged by their mean.
        data: images with masks, or what `load_masked_images` made of them (decoded once for
            several runs).
        out: run folder to create.
        backbone: short for `settings.backbone`.
        size_px: short for `settings.size_px`.
        settings: how.
        overrides: `field=value` texts laid over the settings.
        progress: called with (done, total, note).

    Returns:
        Figures of val and of every test split. The folder gets config.yaml, environment.json,
        result.json, cases.csv and overlays.png.

    Raises:
        InputError: weights, data, settings or `out` cannot be used; nothing is written then.
    """
    start_s = time.perf_counter()
    given = {"backbone": backbone, "size_px": size_px}
    chosen = resolve_probe_settings(settings or SegmentationProbeSettings(), given, overrides)
    RunFolder.refuse_occupied(out)
    sources = named_weights(weights)
    device = choose_device(chosen.device)
    loaded = load_encoders(sources, chosen, size_of_images(data, chosen.size_px))
    images = load_masked_images(
        data,
        size_px=loaded[0][1].size_px,
        seed=chosen.split_seed,
        stretch_masks=chosen.stretch_masks,
        progress=progress,
    )
    chosen = settings_as_read(chosen, data, images)
    count = _counter(len(loaded) * (1 + sum(images.num_cases.values())), progress)
    encoders = [
        MapSource(
            encoder=encoder,
            seed=seed,
            images=images,
            batch_size=chosen.batch_size,
            device=device,
            count=count,
        )
        for seed, encoder in loaded
    ]
    trials = _run_all(encoders, chosen)
    judgement = Judgement(
        task=TASK,
        weights=sources,
        images=images,
        predictions=tabulate_overlaps(trials, images),
        seeds=sorted({trial.seed for trial in trials}),
        config_yaml=config_yaml(TASK, sources, images, chosen),
        command=probe_command(sources, images, out, chosen, extra=("--task", "segmentation")),
        device=device,
        wall_s=time.perf_counter() - start_s,
        facts=_facts(loaded[0][1].card, trials, images),
        warnings=_warnings(encoders, trials),
        write_more=lambda folder: _write_overlays(folder, encoders[0], trials[0]),
    )
    return write_judgement(judgement, out)


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Add up images and pass the sum on."""
    done = 0

    def count(num: int) -> None:
        nonlocal done
        done += num
        if progress is not None:
            progress(done, total, "features")

    return count


def _run_all(encoders: Sequence[MapSource], settings: SegmentationProbeSettings) -> list[MapTrial]:
    """Trials of all encoders, in the order of fractions, encoders and seeds."""
    trials: list[MapTrial] = []
    for source in encoders:
        trials += run_map_trials(
            source,
            fractions=settings.fractions,
            seeds=settings.seeds,
            is_alone=len(encoders) == 1,
            max_positions=settings.max_positions,
        )
        source.encoder.backbone.cpu()  # room on the device for the next one
    models = list(dict.fromkeys(trial.model for trial in trials))
    return sorted(trials, key=lambda trial: models.index(trial.model))


def _facts(card: Card, trials: Sequence[MapTrial], images: LabelledImages) -> dict[str, Any]:
    return {
        "recipe": card.recipe,
        "method": card.method,
        "backbone": card.backbone,
        "chosen_on_val": [
            {
                "model": trial.model,
                "seed": trial.seed,
                "num_train": trial.num_train,
                "num_positions": trial.num_positions,
                "C": trial.probe.strength,
                "val_dice": trial.val_scores[trial.probe.strength],
                "tried": [{"C": c, "val_dice": dice} for c, dice in trial.val_scores.items()],
            }
            for trial in trials
        ],
        "grid": {"C": list(REGULARISATION_CHOICES)},
        "fitted_on": "train",
        "map_size": list(trials[0].map_size),
        "dice_of_foreground_everywhere": _dice_of_everything(images),
    }


def _dice_of_everything(images: LabelledImages) -> dict[str, float] | None:
    """Mean Dice of calling every pixel foreground: what needs no encoder; None for more classes."""
    if len(images.labelled.classes) > 1:
        return None
    return {
        split: float(overlap_scores(np.ones_like(masks), masks, num_classes=2).dice.mean())
        for split, masks in images.masks.items()
        if split in images.splits_tested
    }


def _warnings(encoders: Sequence[MapSource], trials: Sequence[MapTrial]) -> list[str]:
    found = [
        text for source in encoders for text in image_warnings(source.encoder.card, source.images)
    ]
    rows, cols = trials[0].map_size
    if min(rows, cols) < LEAST_MAP:
        found.append(
            f"feature maps of {rows} x {cols} positions are too coarse to place anything; give a "
            "larger --size"
        )
    unconverged = sum(trial.num_unconverged for trial in trials)
    if unconverged:
        found.append(f"linear: {unconverged} fits of the grid stopped at their step limit")
    return list(dict.fromkeys(found))


def _write_overlays(folder: RunFolder, source: MapSource, trial: MapTrial) -> None:
    """Show cases of the first test split as the first trial of the run predicts them."""
    images = source.images
    split = images.labelled.test_splits[0]
    scores = trial.overlaps[split].dice.mean(axis=1)
    cases = spread_by_score(scores, num=NUM_SHOWN)
    quiet = replace(source, count=lambda _: None)
    write_overlays(
        folder.path / OVERLAYS,
        images=images.images[split][cases],
        truths=images.masks[split][cases],
        predictions=predicted_of(quiet, trial, split, cases),
        names=[Path(images.files(split)[i]).name for i in cases],
        scores=[float(scores[i]) for i in cases],
    )
