"""Courses of pre-training: series from metrics.jsonl and their summaries."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lvmmed.report.groups import Group
from lvmmed.report.run import Run

PANELS = (
    ("loss", "Loss"),
    ("matching_accuracy", "Matching accuracy"),
    ("matching_accuracy_first_order", "Matching accuracy, without edges"),
    ("matching_accuracy_perturbed", "Matching accuracy, with noise and margin"),
    ("solver_gap", "Solver gap, upper limit"),
    ("noise_to_affinity", "Noise over affinity"),
    ("contrast_accuracy", "Contrast accuracy"),
    ("partner_accuracy", "Partner accuracy"),
    ("teacher_agreement", "Teacher agreement"),
    ("knn_val_balanced_accuracy", "kNN probe, balanced accuracy on val"),
    ("effective_rank", "Effective rank"),
    ("lidar", "LiDAR"),
    ("alpha_req", "alpha-ReQ"),
    ("feature_std", "Feature deviation"),
    ("alignment", "Alignment"),
    ("uniformity", "Uniformity"),
    ("learning_rate", "Learning rate"),
)
"""Column of metrics.jsonl -> title of its panel, in the order of the page."""

SHARED_SCALE = (
    "matching_accuracy",
    "matching_accuracy_first_order",
    "matching_accuracy_perturbed",
)
"""Panels drawn from 0 to 1 with the chance level, to be read side by side."""

MAX_POINTS = 240
"""Longest curve that is drawn as it is; longer ones are averaged in bins."""


def series(run: Run, column: str) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Steps and values of one column of metrics.jsonl, rows without a finite number left out."""
    pairs = [
        (float(row["step"]), float(row[column]))
        for row in run.metrics
        if _is_number(row.get(column)) and _is_number(row.get("step"))
    ]
    steps = np.array([step for step, _ in pairs], dtype=np.float64)
    return steps, np.array([value for _, value in pairs], dtype=np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(
    steps: Float[np.ndarray, " rows"], values: Float[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Average a long curve in consecutive bins of nearly equal count, at most MAX_POINTS."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
    )


def mean_curve(
    curves: Sequence[tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]],
) -> tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]:
    """Mean over runs at the steps of the first, as far as the shortest run goes."""
    steps = curves[0][0]
    end = min(curve[0][-1] for curve in curves)
    start = max(curve[0][0] for curve in curves)
    steps = steps[(steps <= end) & (steps >= start)]
    return steps, np.mean([np.interp(steps, *curve) for curve in curves], axis=0)


def last_tenth(run: Run, column: str) -> list[float]:
    """Values of the last tenth of the run's steps, at least the last one; empty when absent."""
    steps, values = series(run, column)
    if not len(steps):
        return []
    return [float(value) for value in values[steps >= 0.9 * steps[-1]]]


def graph_size(run: Run) -> int | None:
    """Nodes of a graph, from the settings; None for methods without graphs.

    A batch of fewer images than a graph takes is a single graph.
    """
    method, train = run.config.get("method"), run.config.get("train")
    if not isinstance(method, Mapping):
        return None
    batch_size = train.get("batch_size") if isinstance(train, Mapping) else None
    size = method.get("graph_size")
    if not isinstance(size, int):
        return None
    return min(size, batch_size) if isinstance(batch_size, int) else size


def chance_accuracy(run: Run) -> float | None:
    """Share of nodes a random matching gets right: 1 / graph size."""
    size = graph_size(run)
    return 1 / size if size else None


def shown_panels(groups: Sequence[Group]) -> tuple[tuple[str, str], ...]:
    """Panels that at least one run has numbers for."""
    runs = [run for group in groups for run in group.runs]
    return tuple(panel for panel in PANELS if any(len(series(run, panel[0])[0]) for run in runs))


def final_figures(group: Group, column: str) -> tuple[float, ...]:
    """Mean of the last tenth of training in each run that has the column."""
    tails = (last_tenth(run, column) for run in group.runs)
    return tuple(sum(tail) / len(tail) for tail in tails if tail)
