"""Values that stand for themselves case by case, such as Dice: read from cases.csv.

Letters used in shapes:
    s: seeds.
    n: cases.
    c: classes.
    R: weightings (resamples).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num

from lvmmed.evaluation.cases import CASES_NAME
from lvmmed.types import InputError

KEY_COLUMNS = ("split", "model", "seed", "file", "group", "class")
"""Columns that say what a row's values belong to."""

_Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class CaseValues:
    """A value of each case and class, for one model trained with each of several seeds.

    Attributes:
        metric: name of the value, such as "dice".
        model: such as "finetuned".
        split: "val", "test", ...
        classes: what the last axis of `values` numbers.
        files: one a case.
        groups: patient or file identity of each case.
        seeds: what tells the layers apart.
        values: NaN where a case has no value for a class.
    """

    metric: str
    model: str
    split: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    groups: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Float[np.ndarray, "s n c"]


def mean_over_classes(
    values: Float[np.ndarray, "n c"], weights: Num[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    """Mean over classes of the mean over the cases that have a value, for many weightings.

    Args:
        values: NaN where a case has no value for a class.
        weights: how often each case counts, at least 0.

    Returns:
        One score a weighting. Classes without a value in any case are left out; NaN where none is
        left, and where another one has no case with weight, for a mean over the rest would be
        another quantity under the same name.
    """
    weights = weights.astype(np.float64)
    values = values[:, ~np.isnan(values).all(axis=0)]
    if not values.size:
        return np.full(len(weights), np.nan)
    has_value = ~np.isnan(values)
    totals = weights @ np.where(has_value, values, 0.0)  # [R, c]
    counts = weights @ has_value.astype(np.float64)
    means = np.where(counts > 0, totals / np.where(counts > 0, counts, 1.0), np.nan)
    score: np.ndarray = means.mean(axis=1)
    return score


def value_contributions(values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """Split `mean_over_classes` of all cases into one part a case; exact.

    Args:
        values: NaN where a case has no value for a class.

    Returns:
        Parts that add up to the score; all NaN where no class has a value.
    """
    values = values[:, ~np.isnan(values).all(axis=0)]
    if not values.size:
        return np.full(len(values), np.nan)
    has_value = ~np.isnan(values)
    counts = has_value.sum(axis=0)
    parts: np.ndarray = (np.where(has_value, values, 0.0) / counts).mean(axis=1)
    return parts


def read_case_values(path: Path, metric: str) -> list[CaseValues]:
    """Read one column of values from a cases.csv with a row per split, model, seed, file and class.

    Args:
        path: cases.csv, or the run folder that holds it.
        metric: column to read, such as "dice"; an empty field or "nan" is no value.

    Returns:
        One table per (model, split), in the order of the file.

    Raises:
        InputError: the file is missing, is not such a table, or its seeds cover different cases.
    """
    file = path / CASES_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; give the folder of a probe or finetune run")
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        header = reader.fieldnames or []
        if not {*KEY_COLUMNS, metric} <= set(header):
            raise InputError(
                f"{file}: columns {', '.join(header)}; need {', '.join(KEY_COLUMNS)} and {metric}; "
                "write it with lvmmed probe or finetune, or ask for a score that it holds"
            )
        rows: dict[_Key, list[dict[str, str]]] = {}
        for row in reader:
            rows.setdefault((row["model"], row["split"]), []).append(row)
    try:
        return [_table(file, key, members, metric) for key, members in rows.items()]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: holds a damaged row ({error}); run again") from error


def _table(file: Path, key: _Key, rows: Sequence[Mapping[str, str]], metric: str) -> CaseValues:
    seeds = tuple(dict.fromkeys(row["seed"] for row in rows))
    groups = {row["file"]: row["group"] for row in rows}
    classes = tuple(dict.fromkeys(row["class"] for row in rows))
    found = {(row["seed"], row["file"], row["class"]): float(row[metric] or "nan") for row in rows}
    if len(found) != len(rows) or len(rows) != len(seeds) * len(groups) * len(classes):
        raise InputError(
            f"{file}: {key[0]} on {key[1]} has {len(rows)} rows for {len(seeds)} seeds x "
            f"{len(groups)} files x {len(classes)} classes; run again"
        )
    return CaseValues(
        metric=metric,
        model=key[0],
        split=key[1],
        classes=classes,
        files=tuple(groups),
        groups=tuple(groups.values()),
        seeds=tuple(int(seed) for seed in seeds),
        values=np.array([[[found[s, f, c] for c in classes] for f in groups] for s in seeds]),
    )
