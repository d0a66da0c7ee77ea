"""What every kind of probe shares: settings, encoders to load, and the record of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, model_validator

from lvmmed.config import SEEDS, Settings, apply_overrides, are_seeds, validated
from lvmmed.recipes.judged_encoder import JudgedEncoder, load_judged
from lvmmed.recipes.judging import override_words
from lvmmed.recipes.labelled_images import LabelledImages
from lvmmed.types import InputError


class EncoderProbeSettings(Settings):
    """How an encoder is probed, whatever the task."""

    backbone: str | None = None
    """Name in timm; needed where the weights do not say (random, a bare state dict)."""
    size_px: int | None = Field(None, ge=16, le=1024)
    """Side of the images in pixels; none = what the encoder was trained at."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of random weights and of few-shot subsets."""
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the training cases to fit on, stratified by class; 1 = all."""
    split_seed: int = Field(0, ge=0)
    """Of splits that are made because the data has none."""
    batch_size: int = Field(128, ge=1)
    """Images through the encoder at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    @model_validator(mode="after")
    def _check(self) -> "EncoderProbeSettings":
        if not are_seeds(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}, need {SEEDS}")
        if not self.fractions or not all(0 < frac <= 1 for frac in self.fractions):
            raise ValueError(f"fractions: got {list(self.fractions)}, need numbers in (0, 1]")
        if len(set(self.fractions)) < len(self.fractions):
            raise ValueError(f"fractions: got {list(self.fractions)}, name each share once")
        return self


_SettingsT = TypeVar("_SettingsT", bound=EncoderProbeSettings)


def resolve_probe_settings(
    settings: _SettingsT, given: Mapping[str, Any], overrides: Sequence[str]
) -> _SettingsT:
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
    return validated(type(settings), apply_overrides(values, overrides))


def named_weights(weights: str | Sequence[str]) -> list[str]:
    """List the weights that a user named; none at all is refused with an InputError."""
    sources = [weights] if isinstance(weights, str) else list(weights)
    if not sources:
        raise InputError("weights: none given; name an encoder, or random")
    return sources


def load_encoders(
    sources: Sequence[str], settings: EncoderProbeSettings, size_px: int | None
) -> list[tuple[int, JudgedEncoder]]:
    """Load one encoder for each of several weights, or for each seed of random ones.

    Args:
        sources: weights as the user named them.
        settings: of the probe.
        size_px: side of the images; None leaves it to the encoder.

    Returns:
        (seed, encoder) pairs; the seed of given weights is their place, or the first of the
        settings for a single one.
    """
    pairs = list(enumerate(sources))
    if list(sources) == ["random"]:
        pairs = [(seed, "random") for seed in settings.seeds]
    elif len(sources) == 1:
        pairs = [(settings.seeds[0], sources[0])]
    return [
        (seed, load_judged(source, backbone=settings.backbone, size_px=size_px, seed=seed))
        for seed, source in pairs
    ]


def config_yaml(
    task: str, sources: Sequence[str], images: LabelledImages, settings: EncoderProbeSettings
) -> str:
    """Write what decided a run.

    Args:
        task: as in result.json.
        sources: weights as the user named them.
        images: what was probed on.
        settings: resolved, but for the size.

    Returns:
        Text of config.yaml.
    """
    values = {
        "task": task,
        "weights": sources[0] if len(sources) == 1 else list(sources),
        "data": str(images.source),
        **settings.model_dump(mode="json"),
        "size_px": images.size_px,
    }
    return yaml.safe_dump(values, sort_keys=False)


def probe_command(
    sources: Sequence[str],
    images: LabelledImages,
    out: Path,
    settings: EncoderProbeSettings,
    *,
    extra: Sequence[str] = (),
) -> list[str]:
    """Words of a command line that makes the same run.

    Args:
        sources: weights as the user named them.
        images: what was probed on.
        out: run folder.
        settings: resolved.
        extra: further words, such as `--task segmentation`.

    Returns:
        Words from `lvmmed probe` on.
    """
    words = ["lvmmed", "probe", *extra]
    words += [word for source in sources for word in ("--weights", source)]
    words += ["--data", str(images.source), "--out", str(out)]
    return words + override_words(type(settings)(), settings)
