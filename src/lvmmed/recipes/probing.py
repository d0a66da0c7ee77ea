"""`lvmmed probe`: what a frozen encoder is worth, by kNN and a linear classifier.

A seed decides what is random: the weights of a random encoder, and which cases a few-shot subset
has. A given encoder with all training cases has nothing random in it, so it is probed once,
whatever the number of seeds; its `per_seed` has one entry. To judge a pre-training method, probe
the encoder of each pre-training seed and put the runs together with `summarise_runs`.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from lvmmed.config import Settings, apply_overrides, validated
from lvmmed.engine.device import choose_device
from lvmmed.engine.run_folder import RunFolder
from lvmmed.evaluation.comparison import compare_runs, summarise_runs
from lvmmed.probes import KNN_CHOICES, REGULARISATION_CHOICES
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
    size_of_images,
)
from lvmmed.recipes.probe_trials import (
    Encoder,
    Trial,
    encode,
    neighbor_arrays,
    run_trials,
    tabulate,
)
from lvmmed.types import InputError

__all__ = ["ProbeSettings", "compare_runs", "probe", "summarise_runs"]


class ProbeSettings(Settings):
    """How an encoder is probed."""

    backbone: str | None = None
    """Name in timm; needed where the weights do not say (random, a bare state dict)."""
    size_px: int | None = Field(None, ge=16, le=1024)
    """Side of the images in pixels; none = what the encoder was trained at."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of random weights and of few-shot subsets."""
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the training cases to fit on, stratified by class; 1 = all."""
    label_column: str | None = None
    """Column of a list that holds the classes; none = label."""
    split_seed: int = Field(0, ge=0)
    """Of splits that are made because the data has none."""
    batch_size: int = Field(128, ge=1)
    """Images through the encoder at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    @model_validator(mode="after")
    def _check(self) -> "ProbeSettings":
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: got {list(self.seeds)}, need different numbers from 0 up")
        if not self.fractions or not all(0 < frac <= 1 for frac in self.fractions):
            raise ValueError(f"fractions: got {list(self.fractions)}, need numbers in (0, 1]")
        return self


def probe(
    weights: str | Sequence[str],
    data: Path | LabelledImages,
    out: Path,
    *,
    backbone: str | None = None,
    size_px: int | None = None,
    settings: ProbeSettings | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> JudgingResult:
    """Probe frozen weights on labelled images and write a run folder.

    Features are computed once; k and the strength of regularisation are chosen on val; the probe
    fitted on train is tested once on every test split, each reported apart.

    Args:
        weights: what `load_encoder` takes; several are one encoder a seed, such as the encoders of
            several pre-training seeds, and are judged by their mean.
        data: labelled images, or what `load_labelled_images` made of them (decoded once for
            several runs).
        out: run folder to create.
        backbone: short for `settings.backbone`.
        size_px: short for `settings.size_px`.
        settings: how.
        overrides: `field=value` texts laid over the settings.
        progress: called with (done, total, note).

    Returns:
        Figures of val and of every test split. The folder gets config.yaml, environment.json,
        result.json, cases.csv and neighbors.npz.

    Raises:
        InputError: weights, data, settings or `out` cannot be used; nothing is written then.
    """
    start_s = time.perf_counter()
    given = {"backbone": backbone, "size_px": size_px}
    chosen = resolve_probe_settings(settings or ProbeSettings(), given, overrides)
    RunFolder.refuse_occupied(out)
    sources = [weights] if isinstance(weights, str) else list(weights)
    if not sources:
        raise InputError("weights: none given; name an encoder, or random")
    device = choose_device(chosen.device)
    loaded = _load_encoders(sources, chosen, size_of_images(data, chosen.size_px))
    images = load_labelled_images(
        data,
        size_px=loaded[0][1].size_px,
        seed=chosen.split_seed,
        label_column=chosen.label_column,
        progress=progress,
    )
    encoders = encode(
        loaded, images, batch_size=chosen.batch_size, device=device, progress=progress
    )
    trials = run_trials(encoders, images, fractions=chosen.fractions, seeds=chosen.seeds)
    used = sorted({trial.seed for trial in trials})
    judgement = Judgement(
        task="probe",
        weights=sources,
        images=images,
        predictions=tabulate(trials, images),
        seeds=used,
        config_yaml=_config_yaml(sources, images, chosen),
        command=_command(sources, images, out, chosen),
        device=device,
        wall_s=time.perf_counter() - start_s,
        facts=_facts(encoders, trials),
        warnings=_warnings(encoders, trials, images),
        write_more=lambda folder: _write_neighbors(folder, encoders[0], images),
    )
    return write_judgement(judgement, out)


def resolve_probe_settings(
    settings: ProbeSettings, given: Mapping[str, Any], overrides: Sequence[str]
) -> ProbeSettings:
    """Lay arguments that are not None, then `field=value` texts, over settings.

    A field that is unknown or out of range is refused with an InputError.

    Args:
        settings: where to start.
        given: field -> value, None where not given.
        overrides: `field=value` texts.

    Returns:
        Checked settings.
    """
    values = {**settings.model_dump(), **{k: v for k, v in given.items() if v is not None}}
    return validated(ProbeSettings, apply_overrides(values, overrides))


def _load_encoders(
    sources: Sequence[str], settings: ProbeSettings, size_px: int | None
) -> list[tuple[int, JudgedEncoder]]:
    """Load one encoder for each of several weights, or for each seed of random ones."""
    pairs = list(enumerate(sources))
    if list(sources) == ["random"]:
        pairs = [(seed, "random") for seed in settings.seeds]
    elif len(sources) == 1:
        pairs = [(settings.seeds[0], sources[0])]
    return [
        (seed, load_judged(source, backbone=settings.backbone, size_px=size_px, seed=seed))
        for seed, source in pairs
    ]


def _facts(encoders: Sequence[Encoder], trials: Sequence[Trial]) -> dict[str, Any]:
    card = encoders[0].card
    return {
        "recipe": card.recipe,
        "method": card.method,
        "backbone": card.backbone,
        "chosen_on_val": [
            {
                "model": trial.model,
                "seed": trial.seed,
                "num_train": trial.num_train,
                "k" if trial.model.startswith("knn") else "C": trial.fitted.chosen,
                "val_balanced_accuracy": trial.fitted.val_score,
            }
            for trial in trials
        ],
        "grid": {"k": list(KNN_CHOICES), "C": list(REGULARISATION_CHOICES)},
        "fitted_on": "train",
    }


def _warnings(
    encoders: Sequence[Encoder], trials: Sequence[Trial], images: LabelledImages
) -> list[str]:
    found = [text for e in encoders for text in image_warnings(e.card, images)]
    unconverged = sum(trial.fitted.num_unconverged for trial in trials)
    if unconverged:
        found.append(f"linear: {unconverged} fits of the grid stopped at their step limit")
    return list(dict.fromkeys(found))


def _config_yaml(sources: Sequence[str], images: LabelledImages, settings: ProbeSettings) -> str:
    values = {
        "task": "probe",
        "weights": sources[0] if len(sources) == 1 else list(sources),
        "data": str(images.source),
        **settings.model_dump(mode="json"),
        "size_px": images.size_px,
    }
    return yaml.safe_dump(values, sort_keys=False)


def _command(
    sources: Sequence[str], images: LabelledImages, out: Path, settings: ProbeSettings
) -> list[str]:
    """Words of a command line that makes this run; several weights have no such command."""
    words = ["lvmmed", "probe", "--weights", ",".join(sources)]
    words += ["--data", str(images.source), "--out", str(out)]
    return words + override_words(ProbeSettings(), settings)


def _write_neighbors(folder: RunFolder, encoder: Encoder, images: LabelledImages) -> None:
    folder.write_arrays("neighbors.npz", neighbor_arrays(encoder, images))
