"""Per-case predictions: what every figure of a run is computed from (cases.csv).

Letters used in shapes:
    s: seeds.
    n: cases.
    c: classes.
"""

import csv
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from lvmmed.evaluation.classification import weighted_scores
from lvmmed.evaluation.statistics import Scorer
from lvmmed.types import InputError

FIXED_COLUMNS = ("split", "file", "group", "label", "prediction", "seed", "model")
PROBABILITY_PREFIX = "probability_"
CASES_NAME = "cases.csv"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one model, trained with each of several seeds, said about the cases of one split.

    Attributes:
        model: such as "knn", "linear", "linear@10%" or "finetuned".
        split: "val", "test", "test_in", ...
        classes: names of the columns of `probabilities`.
        files: one a case, relative to the data's folder; the key for pairing with other models.
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
        place = {file: i for i, file in enumerate(self.files)}
        missing = sorted(set(files) ^ set(self.files))
        if missing:
            raise InputError(
                f"{self.model} on {self.split}: {len(missing)} cases differ between the runs "
                f"(first: {missing[0]}); only runs tested on the same cases can be compared"
            )
        order = np.array([place[file] for file in files])
        return Predictions(
            model=self.model,
            split=self.split,
            classes=self.classes,
            files=tuple(files),
            groups=tuple(self.groups[i] for i in order),
            labels=self.labels[order],
            seeds=self.seeds,
            probabilities=self.probabilities[:, order],
        )


def write_cases(path: Path, predictions: Sequence[Predictions]) -> None:
    """Write one row per model, split, seed and case; atomic.

    Columns: split, file, group, label, prediction, seed, model, then `probability_<class>`.
    Nine digits keep a float32 exactly, so every score can be recomputed from the file.

    Args:
        path: file to write.
        predictions: all over the same classes.
    """
    classes = predictions[0].classes
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*FIXED_COLUMNS, *(PROBABILITY_PREFIX + name for name in classes)])
        for table in predictions:
            writer.writerows(_rows(table))
    temporary.replace(path)


def _rows(table: Predictions) -> Iterable[list[str]]:
    for seed, layer in zip(table.seeds, table.layers(), strict=True):
        for i, row in enumerate(layer):
            yield [
                table.split,
                table.files[i],
                table.groups[i],
                table.classes[table.labels[i]],
                table.classes[int(row.argmax())],
                str(seed),
                table.model,
                *(f"{value:.9g}" for value in row),
            ]


def read_cases(path: Path) -> list[Predictions]:
    """Read what `write_cases` wrote, in the order of the file.

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
