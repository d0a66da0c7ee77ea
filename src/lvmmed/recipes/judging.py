"""What every run that judges an encoder shares: its result, and the folder it is written to."""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lvmmed.config import Settings
from lvmmed.engine.environment import device_name, environment
from lvmmed.engine.run_folder import RESULT, RunFolder
from lvmmed.evaluation.cases import CASES_NAME, CaseTable, write_cases
from lvmmed.evaluation.comparison import Figure, summarise_predictions
from lvmmed.recipes.labelled_images import LabelledImages
from lvmmed.types import FORMAT_VERSION

HEADLINE_METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "auroc", "dice", "iou")
INTERVAL_NOTE = (
    "ci95: percentile bootstrap over {unit} identities ({times}) of the mean over seeds, the same "
    "resample for all seeds; seed_std: standard deviation over seeds"
)

Progress = Callable[[float, float, str], None]
"""Called with (done, total, note)."""


@dataclass(frozen=True, kw_only=True)
class JudgingResult:
    """What a probe or fine-tuning run found.

    Attributes:
        folder: run folder, complete.
        figures: split -> metric key -> figure; the splits are "val" (selected on) and the tests.
        size_px: side of the images that it was judged on.
        warnings: what a reader of the figures must know.
        wall_s: seconds the run took.
    """

    folder: Path
    figures: Mapping[str, Mapping[str, Figure]]
    size_px: int
    warnings: tuple[str, ...]
    wall_s: float

    def lines(self) -> list[str]:
        """Say in a few lines what was found on the test splits, in percent."""
        found = []
        for split, figures in self.figures.items():
            if split == "val":
                continue
            for model in dict.fromkeys(key.rpartition(".")[0] for key in figures):
                prefix = f"{model}." if model else ""
                named = {m: figures.get(prefix + m) for m in HEADLINE_METRICS}
                texts = [f"{m} {_percent(figure)}" for m, figure in named.items() if figure]
                found.append(f"{split} {model}".strip() + ": " + ", ".join(texts))
        found.extend(f"warning: {text}" for text in self.warnings)
        found.append(
            f"judged at {self.size_px} px; selected on val, tested once; {self.wall_s:.0f} s; "
            f"{self.folder}"
        )
        return found


def _percent(figure: Figure) -> str:
    if figure.mean is None:
        return "undefined"
    text = f"{100 * figure.mean:.1f}"
    if figure.ci95 is None:
        return text
    return f"{text} ({100 * figure.ci95[0]:.1f} to {100 * figure.ci95[1]:.1f})"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Everything a judging run is going to write.

    Attributes:
        task: such as "probe", "probe-segmentation" or "classification".
        weights: as the user gave them; several for several encoders.
        images: what it was judged on.
        predictions: per-case results of every model and split.
        seeds: of the run.
        config_yaml: resolved settings.
        command: words of the command that does the same.
        device: where it ran.
        wall_s: seconds it took.
        write_more: writes further files into the folder it is given.
        facts: further entries of result.json, such as the encoder's recipe and what was chosen.
        warnings: what a reader of the figures must know.
    """

    task: str
    weights: Sequence[str]
    images: LabelledImages
    predictions: Sequence[CaseTable]
    seeds: Sequence[int]
    config_yaml: str
    command: Sequence[str]
    device: torch.device
    wall_s: float
    write_more: Callable[[RunFolder], None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def write_judgement(judgement: Judgement, out: Path) -> JudgingResult:
    """Compute the figures and write the run folder in one move: complete, or not at all.

    Args:
        judgement: what to write.
        out: run folder to create.

    Returns:
        The figures, and where they lie.
    """
    RunFolder.refuse_occupied(out)
    figures = summarise_predictions(judgement.predictions)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        _fill(temporary, judgement, figures)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return JudgingResult(
        folder=out,
        figures=figures,
        size_px=judgement.images.size_px,
        warnings=tuple(judgement.warnings),
        wall_s=judgement.wall_s,
    )


def _fill(path: Path, judgement: Judgement, figures: Mapping[str, Mapping[str, Figure]]) -> None:
    fingerprint = judgement.images.labelled.fingerprint
    folder = RunFolder.create(
        path,
        config_yaml=judgement.config_yaml,
        environment={**environment(judgement.device), "data_fingerprint": fingerprint},
    )
    write_cases(path / CASES_NAME, judgement.predictions)
    judgement.write_more(folder)
    folder.write_json(RESULT, _result(judgement, figures))


def _result(judgement: Judgement, figures: Mapping[str, Mapping[str, Figure]]) -> dict[str, Any]:
    labelled = judgement.images.labelled
    weights = list(judgement.weights)
    unit = "patient" if labelled.unit == "patient" else "file"
    return {
        "format_version": FORMAT_VERSION,
        "task": judgement.task,
        "data": str(judgement.images.source),
        "weights": weights[0] if len(weights) == 1 else weights,
        "recipe": None,
        "method": None,
        **judgement.facts,
        "seeds": list(judgement.seeds),
        "selected_on": "val",
        "metrics": {
            split: {name: figure.to_json() for name, figure in of_split.items()}
            for split, of_split in figures.items()
        },
        "num_cases": judgement.images.num_cases,
        "num_left_out": dict(labelled.num_left_out),
        "unit": labelled.unit,
        "interval": INTERVAL_NOTE.format(unit=unit, times="2000 resamples"),
        "classes": list(labelled.classes),
        "size_px": judgement.images.size_px,
        "warnings": list(judgement.warnings),
        "command": shlex.join(judgement.command),
        "wall_s": judgement.wall_s,
        "device": device_name(judgement.device),
        "data_fingerprint": labelled.fingerprint,
    }


def override_words(defaults: Settings, settings: Settings) -> list[str]:
    """Command line words (`--set field=value`) for the fields that differ from the defaults."""
    before, after = defaults.model_dump(mode="json"), settings.model_dump(mode="json")
    return [
        word
        for name, value in after.items()
        if value != before[name]
        for word in ("--set", f"{name}={json.dumps(value)}")
    ]
