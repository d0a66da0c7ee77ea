"""Confusion matrices counted from the cases.csv of runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lvmmed.evaluation.cases import CASES_NAME, Predictions, read_cases
from lvmmed.evaluation.comparison import FINETUNED
from lvmmed.report.groups import Group, each_once
from lvmmed.report.run import Run

MAX_CLASSES = 16
"""Matrices of more classes are not drawn: the cells would be too small to read."""

CLASSIFYING_TASKS = ("probe", "classification")
"""Tasks whose cases.csv holds classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell: cases of the row's true class that were predicted as the column's class."""

    count: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusionMatrix:
    """Counts of one group, head and split, rows true, columns predicted.

    Attributes:
        label: label of the group.
        head: "linear", "knn" or "fine-tuned".
        split: split counted.
        classes: class of each row and column.
        rows: cells of each true class; shares are of the row's total.
        num_models: trained models (runs x seeds) whose predictions are added up.
    """

    label: str
    head: str
    split: str
    classes: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_models: int


def confusion_matrices(group: Group) -> tuple[ConfusionMatrix, ...]:
    """Count the test cases of all runs of a group, one matrix for each head and test split.

    A cases.csv that cannot be read or lacks a column is refused with an InputError.

    Args:
        group: runs of one task on one data set.

    Returns:
        Matrices ordered by head and split; empty when no run has a cases.csv or the classes are
        more than `MAX_CLASSES`.
    """
    tables: dict[tuple[str, str], list[Predictions]] = {}
    for own in each_once(group.runs, [_tables(run) for run in group.runs]):
        for key, table in own.items():
            tables.setdefault(key, []).append(table)
    matrices = [_matrix(group, key, tables[key]) for key in sorted(tables)]
    return tuple(matrix for matrix in matrices if len(matrix.classes) <= MAX_CLASSES)


def _tables(run: Run) -> dict[tuple[str, str], Predictions]:
    """Cases of a run by head and test split."""
    if run.task not in CLASSIFYING_TASKS or not (run.folder / CASES_NAME).is_file():
        return {}
    return {
        ("fine-tuned" if table.model == FINETUNED else table.model, table.split): table
        for table in read_cases(run.folder)
        if table.split.startswith("test")
    }


def _matrix(group: Group, key: tuple[str, str], tables: Sequence[Predictions]) -> ConfusionMatrix:
    classes = tuple(dict.fromkeys(name for table in tables for name in table.classes))
    counts: Int[np.ndarray, "classes classes"] = np.zeros((len(classes),) * 2, dtype=np.int64)
    for table in tables:
        place = np.array([classes.index(name) for name in table.classes])
        for layer in table.layers():
            np.add.at(counts, (place[table.labels], place[layer.argmax(axis=1)]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return ConfusionMatrix(
        label=group.label,
        head=key[0],
        split=key[1],
        classes=classes,
        rows=tuple(
            tuple(
                Cell(count=int(count), share=float(share))
                for count, share in zip(*row, strict=True)
            )
            for row in zip(counts, shares, strict=True)
        ),
        num_models=sum(len(table.seeds) for table in tables),
    )
