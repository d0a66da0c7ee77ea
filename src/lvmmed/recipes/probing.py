"""`lvmmed probe`: what a frozen encoder is worth, by kNN and a linear classifier.

A seed decides what is random: the weights of a random encoder, and which cases a few-shot subset
has. A given encoder with all training cases has nothing random in it, so it is probed once,
whatever the number of seeds; its `per_seed` has one entry. To judge a pre-training method, probe
the encoder of each pre-training seed and put the runs together with `summarise_runs`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvmmed.engine.device import choose_device
from lvmmed.engine.run_folder import RunFolder
from lvmmed.evaluation.comparison import compare_runs, summarise_runs
from lvmmed.probes import KNN_CHOICES, REGULARISATION_CHOICES
from lvmmed.recipes.judging import Judgement, JudgingResult, Progress, write_judgement
from lvmmed.recipes.labelled_images import (
    LabelledImages,
    image_warnings,
    load_labelled_images,
    settings_as_read,
    size_of_images,
)
from lvmmed.recipes.probe_settings import (
    EncoderProbeSettings,
    config_yaml,
    load_encoders,
    named_weights,
    probe_command,
    resolve_probe_settings,
)
from lvmmed.recipes.probe_trials import (
    Encoder,
    Trial,
    encode,
    neighbor_arrays,
    run_trials,
    tabulate,
)

__all__ = ["ProbeSettings", "compare_runs", "probe", "summarise_runs"]


class ProbeSettings(EncoderProbeSettings):
    """How an encoder is probed on labelled images."""

    label_column: str | None = None
    """Column of a list that holds the classes; none = label."""


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
    sources = named_weights(weights)
    device = choose_device(chosen.device)
    loaded = load_encoders(sources, chosen, size_of_images(data, chosen.size_px))
    images = load_labelled_images(
        data,
        size_px=loaded[0][1].size_px,
        seed=chosen.split_seed,
        label_column=chosen.label_column,
        progress=progress,
    )
    chosen = settings_as_read(chosen, data, images)
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
        config_yaml=config_yaml("probe", sources, images, chosen),
        command=probe_command(sources, images, out, chosen),
        device=device,
        wall_s=time.perf_counter() - start_s,
        facts=_facts(encoders, trials),
        warnings=_warnings(encoders, trials, images),
        write_more=lambda folder: _write_neighbors(folder, encoders[0], images),
    )
    return write_judgement(judgement, out)


def _facts(encoders: Sequence[Encoder], trials: Sequence[Trial]) -> dict[str, Any]:
    card = encoders[0].card
    return {
        "recipe": card.recipe,
        "method": card.method,
        "backbone": card.backbone,
        "chosen_on_val": [_choice(trial) for trial in trials],
        "grid": {"k": list(KNN_CHOICES), "C": list(REGULARISATION_CHOICES)},
        "fitted_on": "train",
    }


def _choice(trial: Trial) -> dict[str, Any]:
    """What was chosen on val, and every value that was tried with its score there."""
    name = "k" if trial.model.startswith("knn") else "C"
    return {
        "model": trial.model,
        "seed": trial.seed,
        "num_train": trial.num_train,
        name: trial.fitted.chosen,
        "val_balanced_accuracy": trial.fitted.val_score,
        "tried": [
            {name: value, "val_balanced_accuracy": score}
            for value, score in trial.fitted.val_scores.items()
        ],
    }


def _warnings(
    encoders: Sequence[Encoder], trials: Sequence[Trial], images: LabelledImages
) -> list[str]:
    found = [text for e in encoders for text in image_warnings(e.card, images)]
    unconverged = sum(trial.fitted.num_unconverged for trial in trials)
    if unconverged:
        found.append(f"linear: {unconverged} fits of the grid stopped at their step limit")
    return list(dict.fromkeys(found))


def _write_neighbors(folder: RunFolder, encoder: Encoder, images: LabelledImages) -> None:
    folder.write_arrays("neighbors.npz", neighbor_arrays(encoder, images))
