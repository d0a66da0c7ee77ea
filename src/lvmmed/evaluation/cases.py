"""Per-case results: what every figure of a run is computed from (cases.csv).

Every task has its own table, a `CaseTable`: class probabilities here, overlaps in `segmentation`.

Letters used in shapes:
    s: seeds.
    n: cases.
    c: classes.
"""

import csv
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from lvmmed.evaluation.classification import weighted_scores
from lvmmed.evaluation.statistics import Scorer
from lvmmed.types import InputError

FIXED_COLUMNS = ("split", "file", "group", "label", "prediction", "seed", "model")
PROBABILITY_PREFIX = "probability_"
CASES_NAME = "cases.csv"

_SameTable = TypeVar("_SameTable")


@runtime_checkable
class CaseTable(Protocol):
    """What one model, trained with each of several seeds, is worth on every case of one split."""

    @property
    def model(self) -> str:
        """Name of the model, such as "linear"."""

    @property
    def split(self) -> str:
        """Split of the cases."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def files(self) -> tuple[str, ...]:
        """One a case; the key for pairing with other models."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Patient or file identity of each case."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """What tells the layers apart."""

    def scorers(self) -> list[Scorer]:
        """One scorer a seed, for the bootstrap."""

    def aligned_with(self: _SameTable, other: _SameTable) -> _SameTable:
        """Put the cases in the other's order; refuse other cases or other truth."""

    def joined_with(self: _SameTable, others: Sequence[_SameTable]) -> _SameTable:
        """Add the layers of aligned tables; the seeds are numbered from 0."""

    def header(self) -> list[str]:
        """Columns in cases.csv."""

    def rows(self) -> Iterable[list[str]]:
        """One row of cases.csv a seed and case."""


def case_order(files: Sequence[str], wanted: Sequence[str], *, what: str) -> Int[np.ndarray, " n"]:
    """Find where each wanted file stands.

    Args:
        files: one a case.
        wanted: the same files in another order.
        what: what the cases belong to, for the message.

    Returns:
        Positions in `files`.

    Raises:
        InputError: the files are not the same set.
    """
    place = {file: i for i, file in enumerate(files)}
    missing = sorted(set(wanted) ^ set(files))
    if missing:
        raise InputError(
            f"{what}: {len(missing)} cases differ between the runs "
            f"(first: {missing[0]}); only runs tested on the same cases can be compared"
        )
    return np.array([place[file] for file in wanted], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one model, trained with each of several seeds, said about the cases of one split.

    Attributes:
        model: such as "knn", "linear", "linear@10%" or "finetuned".
        split: "val", "test", "test_in", ...
        classes: names of the columns of `probabilities`.
        files: one a case, as the list names it, else relative to the data's folder; the key for
            pairing with other models.
        groups: patient or file identity of each case.
        labels: true class of each case as a column of `probabilities`.
        seeds: what tells the runs apart; one a layer of `probabilities`.
        probabilities: float32, so that cases.csv keeps them to the last bit.
    """

    model: str
    split: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    seeds: tuple[int, ...]
    probabilities: Float32[np.ndarray, "s n c"]

    def scorers(self) -> list[Scorer]:
        """One scorer a seed, for the bootstrap."""
        return [functools.partial(weighted_scores, layer, self.labels) for layer in self.layers()]

    def layers(self) -> list[Float32[np.ndarray, "n c"]]:
        """Probabilities of each seed."""
        return list(self.probabilities)

    def reordered(self, files: Sequence[str]) -> "Predictions":
        """Put the cases in another order.

        Args:
            files: the same files, in the order wanted.

        Returns:
            The same table with its cases reordered.

        Raises:
            InputError: the files are not the same set.
        """
        if tuple(files) == self.files:
            return self
        order = case_order(self.files, files, what=f"{self.model} on {self.split}")
        return replace(
            self,
            files=tuple(files),
            groups=tuple(self.groups[i] for i in order),
            labels=self.labels[order],
            probabilities=self.probabilities[:, order],
        )

    def aligned_with(self, other: "Predictions") -> "Predictions":
        """Put the cases in the other's order.

        Args:
            other: predictions of the same cases.

        Returns:
            The same table with its cases reordered.

        Raises:
            InputError: other cases, or labels that differ.
        """
        aligned = self.reordered(other.files)
        if not np.array_equal(aligned.labels, other.labels):
            raise InputError(
                f"runs: labels on {self.split} differ; were they run on the same list?"
            )
        return aligned

    def joined_with(self, others: Sequence["Predictions"]) -> "Predictions":
        """Add the layers of aligned tables; the seeds are numbered from 0."""
        layers = np.concatenate([table.probabilities for table in (self, *others)])
        return replace(self, seeds=tuple(range(len(layers))), probabilities=layers)

    def header(self) -> list[str]:
        """Columns in cases.csv."""
        return [*FIXED_COLUMNS, *(PROBABILITY_PREFIX + name for name in self.classes)]

    def rows(self) -> Iterable[list[str]]:
        """One row of cases.csv a seed and case; nine digits keep a float32 exactly."""
        for seed, layer in zip(self.seeds, self.layers(), strict=True):
            for i, row in enumerate(layer):
                yield [
                    self.split,
                    self.files[i],
                    self.groups[i],
                    self.classes[self.labels[i]],
                    self.classes[int(row.argmax())],
                    str(seed),
                    self.model,
                    *(f"{value:.9g}" for value in row),
                ]


def write_cases(path: Path, tables: Sequence[CaseTable]) -> None:
    """Write the rows of all tables below one header; atomic.

    Numbers are written so that every score can be recomputed from the file. Columns of
    `Predictions`: split, file, group, label, prediction, seed, model, then `probability_<class>`.

    Args:
        path: file to write.
        tables: all of one task, over the same classes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(tables[0].header())
        for table in tables:
            writer.writerows(table.rows())
    temporary.replace(path)


def read_cases(path: Path) -> list[Predictions]:
    """Read the predictions that `write_cases` wrote, in the order of the file.

    Args:
        path: cases.csv, or the run folder that holds it.

    Returns:
        One table per (model, split).

    Raises:
        InputError: the file is missing, is not such a table, or its seeds cover different cases.
    """
    file = path / CASES_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; give the folder of a probe or finetune run")
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        header = reader.fieldnames or []
        columns = [name for name in header if name.startswith(PROBABILITY_PREFIX)]
        if not set(FIXED_COLUMNS) <= set(header) or not columns:
            raise InputError(
                f"{file}: columns {', '.join(header)}; need {', '.join(FIXED_COLUMNS)} and "
                f"{PROBABILITY_PREFIX}<class>; write it with lvmmed probe or finetune"
            )
        rows: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
        for row in reader:
            seeds = rows.setdefault((row["model"], row["split"]), {})
            seeds.setdefault(row["seed"], []).append(row)
    try:
        return [_table(file, key, seeds, columns) for key, seeds in rows.items()]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: holds a damaged row ({error}); run again") from error


def _table(
    file: Path,
    key: tuple[str, str],
    seeds: Mapping[str, list[dict[str, str]]],
    columns: Sequence[str],
) -> Predictions:
    first, *others = seeds.values()
    files = tuple(row["file"] for row in first)
    if any(tuple(row["file"] for row in rows) != files for rows in others):
        raise InputError(f"{file}: seeds of {key[0]} on {key[1]} cover different cases; run again")
    classes = tuple(name.removeprefix(PROBABILITY_PREFIX) for name in columns)
    position = {name: i for i, name in enumerate(classes)}
    probabilities = [[[float(row[c]) for c in columns] for row in rows] for rows in seeds.values()]
    return Predictions(
        model=key[0],
        split=key[1],
        classes=classes,
        files=files,
        groups=tuple(row["group"] for row in first),
        labels=np.array([position[row["label"]] for row in first], dtype=np.int64),
        seeds=tuple(int(seed) for seed in seeds),
        probabilities=np.array(probabilities, dtype=np.float32),
    )
