"""Features of every encoder of a probing run, and every probe fitted on them.

Letters used in shapes:
    n: cases of a split.
    D: width of the features.
    q: queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int

from lvmmed.evaluation.cases import Predictions
from lvmmed.probes import (
    PROBES,
    Fitted,
    cosine_similarity,
    extract_features,
    few_shot_subset,
    nearest,
)
from lvmmed.recipes.judged_encoder import JudgedEncoder
from lvmmed.recipes.judging import Progress
from lvmmed.recipes.labelled_images import LabelledImages
from lvmmed.types import Card

NUM_QUERIES = 8
NUM_NEIGHBORS = 5


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One encoder of a run.

    Attributes:
        seed: of its random weights, or its place among several weights.
        card: what it is.
        features: split -> pooled features of the cases.
    """

    seed: int
    card: Card
    features: Mapping[str, Float32[np.ndarray, "n D"]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fitted probe.

    Attributes:
        model: name in cases.csv.
        seed: of the encoder, or of the few-shot subset.
        num_train: cases it was fitted on.
        fitted: the probe.
        probabilities: split -> predicted probabilities of val and the test splits.
    """

    model: str
    seed: int
    num_train: int
    fitted: Fitted
    probabilities: Mapping[str, np.ndarray]


def encode(
    loaded: Sequence[tuple[int, JudgedEncoder]],
    images: LabelledImages,
    *,
    batch_size: int,
    device: torch.device,
    progress: Progress | None = None,
) -> list[Encoder]:
    """Compute the features of every split by every encoder.

    Args:
        loaded: (seed, encoder) pairs.
        images: what to encode.
        batch_size: images at once.
        device: where to run.
        progress: called with (images done, images, note).

    Returns:
        Encoders in the order given; their weights are not kept.
    """
    num_images = sum(images.num_cases.values())
    total, done = num_images * len(loaded), 0
    encoders = []
    for seed, encoder in loaded:
        features = {}
        for split, squares in images.images.items():
            features[split] = extract_features(
                encoder.backbone, squares, batch_size=batch_size, device=device
            )
            done += len(squares)
            if progress is not None:
                progress(done, total, "features")
        encoder.backbone.cpu()  # room on the device for the next one
        encoders.append(Encoder(seed=seed, card=encoder.card, features=features))
    return encoders


def run_trials(
    encoders: Sequence[Encoder],
    images: LabelledImages,
    *,
    fractions: Sequence[float],
    seeds: Sequence[int],
) -> list[Trial]:
    """Fit every probe at every fraction, for every seed that makes a difference.

    Args:
        encoders: one, which then takes every seed where few-shot subsets are drawn, or several,
            each of which takes its own.
        images: cases and labels.
        fractions: shares of the training cases; 1 is all of them and draws nothing.
        seeds: of few-shot subsets of a single encoder.

    Returns:
        Trials in the order of fractions, seeds and `PROBES`.
    """
    trials = []
    for frac in fractions:
        for encoder in encoders:
            for seed in trial_seeds(
                frac, own=encoder.seed, is_alone=len(encoders) == 1, seeds=seeds
            ):
                trials.extend(_fit_probes(encoder, images, frac=frac, seed=seed))
    return trials


def trial_seeds(frac: float, *, own: int, is_alone: bool, seeds: Sequence[int]) -> Sequence[int]:
    """Seeds that an encoder is probed with at one fraction.

    Args:
        frac: share of the training cases.
        own: seed of the encoder.
        is_alone: it is the only encoder of the run.
        seeds: of the run.

    Returns:
        Every seed where a single encoder draws few-shot subsets, else its own.
    """
    return seeds if frac < 1 and is_alone else [own]


def _fit_probes(encoder: Encoder, images: LabelledImages, *, frac: float, seed: int) -> list[Trial]:
    labels = images.labels("train")
    chosen = np.arange(len(labels))
    if frac < 1:
        chosen = few_shot_subset(labels, frac=frac, generator=np.random.default_rng(seed))
    trials = []
    for name, fit in PROBES.items():
        fitted = fit(
            encoder.features["train"][chosen],
            labels[chosen],
            encoder.features["val"],
            images.labels("val"),
            num_classes=len(images.labelled.classes),
        )
        predicted = {
            split: fitted.predict(encoder.features[split]).astype(np.float32)
            for split in images.splits_tested
        }
        trials.append(
            Trial(
                model=probe_name(name, frac),
                seed=seed,
                num_train=len(chosen),
                fitted=fitted,
                probabilities=predicted,
            )
        )
    return trials


def probe_name(name: str, frac: float) -> str:
    """Name of a probe in cases.csv and result.json: "linear", or "linear@10%" for few shots."""
    # a dot would part model and metric
    return name if frac == 1 else f"{name}@{100 * frac:g}%".replace(".", ",")


def tabulate(trials: Sequence[Trial], images: LabelledImages) -> list[Predictions]:
    """Collect the predictions of all trials into one table per model and split."""
    tables = []
    for model in dict.fromkeys(trial.model for trial in trials):
        of_model = [trial for trial in trials if trial.model == model]
        for split in images.splits_tested:
            tables.append(
                Predictions(
                    model=model,
                    split=split,
                    classes=images.labelled.classes,
                    files=images.files(split),
                    groups=images.groups(split),
                    labels=images.labels(split),
                    seeds=tuple(trial.seed for trial in of_model),
                    probabilities=np.stack([trial.probabilities[split] for trial in of_model]),
                )
            )
    return tables


def neighbor_arrays(encoder: Encoder, images: LabelledImages) -> dict[str, np.ndarray]:
    """Choose a few test images and find their nearest training images, for the report.

    Args:
        encoder: whose features decide what is near (cosine).
        images: cases; queries come from the first test split, classes in turns.

    Returns:
        query, neighbors (uint8 images), query_label, neighbor_labels and similarity.
    """
    split = images.labelled.test_splits[0]
    labels, train_labels = images.labels(split), images.labels("train")
    queries = spread_over_classes(labels, num=NUM_QUERIES, generator=np.random.default_rng(0))
    similarity = cosine_similarity(encoder.features[split][queries], encoder.features["train"])
    order = nearest(similarity, min(NUM_NEIGHBORS, len(train_labels)))
    names = np.array(images.labelled.classes, dtype=np.str_)
    return {
        "query": images.images[split][queries],
        "neighbors": images.images["train"][order],
        "query_label": names[labels[queries]],
        "neighbor_labels": names[train_labels[order]],
        "similarity": np.take_along_axis(similarity, order, axis=1).astype(np.float32),
    }


def spread_over_classes(
    labels: Int[np.ndarray, " n"], *, num: int, generator: np.random.Generator
) -> Int[np.ndarray, " q"]:
    """Choose cases so that classes take turns; ascending positions, all cases if fewer."""
    shuffled = generator.permutation(len(labels))
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    return np.sort(order[:num])
