"""The folder that holds everything one run wrote; every write is atomic."""

import csv
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lvmmed.config import read_yaml
from lvmmed.files import UNFINISHED, refuse_unwritable, told_if_unwritable, write_atomically
from lvmmed.types import FORMAT_VERSION, InputError

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
NUM_CHECKPOINTS_KEPT = 2
CHECKPOINT_NAME = re.compile(r"step_(\d{7,})\.pt")


def json_text(value: Any) -> str:
    """Write a value as standard JSON: numbers that are not finite become null."""
    return json.dumps(_plain(value), allow_nan=False)


def first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, ignored: Sequence[str] = ()
) -> tuple[str, Any, Any] | None:
    """Find the first field in which two nested mappings differ.

    Args:
        old: values that are there.
        new: values wanted.
        ignored: dotted names that may differ.

    Returns:
        (dotted name, old value, new value) or None; a value that is absent is None.
    """
    left, right = _flat(old), _flat(new)
    for name in dict.fromkeys([*left, *right]):
        if name not in ignored and left.get(name) != right.get(name):
            return name, left.get(name), right.get(name)
    return None


class RunFolder:
    """An open run folder: configuration, environment, metrics, checkpoints and results."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, *, config_yaml: str, environment: Mapping[str, Any]) -> "RunFolder":
        """Start a new run; a path that is occupied is refused as in `refuse_occupied`.

        Args:
            path: folder to create; an empty one is taken too.
            config_yaml: resolved configuration.
            environment: what `environment()` gives, and the fingerprint of the data.

        Returns:
            The open folder.
        """
        cls.refuse_occupied(path)
        with told_if_unwritable(path):
            path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder.write_json(ENVIRONMENT, {"format_version": FORMAT_VERSION, **environment})
        folder.write_text(CONFIG, config_yaml)
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open a run that is there.

        Args:
            path: run folder.

        Returns:
            The open folder.

        Raises:
            InputError: there is no run, or a newer version of the package wrote it.
        """
        if not (path / CONFIG).is_file():
            raise InputError(f"{path}: no run folder (no {CONFIG} in it); check the path")
        folder = cls(path)
        found = folder.read_json(ENVIRONMENT).get("format_version")
        if not (path / ENVIRONMENT).is_file():
            raise InputError(f"{path}: no whole run folder ({ENVIRONMENT} is missing)")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise InputError(
                f"{path / ENVIRONMENT}: format_version {found}, this version of lvmmed reads up to "
                f"{FORMAT_VERSION}; upgrade lvmmed"
            )
        return folder

    @staticmethod
    def refuse_occupied(path: Path, *, can_resume: bool = False) -> None:
        """Refuse to start a run where one is, or where other files are; touches nothing.

        Args:
            path: folder that a new run is to be written to.
            can_resume: the command has `--resume`, which is named as a way out then.

        Raises:
            InputError: the path is a file, a folder with something in it, or cannot be written to.
        """
        refuse_unwritable(path, "--out")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; give a folder for the run with --out")
        if (path / CONFIG).is_file():
            state = "a finished run" if (path / RESULT).is_file() else "an unfinished run"
            resume = "go on with --resume, or " if can_resume else ""
            raise InputError(f"{path}: holds {state}; {resume}give another folder with --out")
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path}: is not empty and holds no run; give another --out")

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its result."""
        return (self.path / RESULT).is_file()

    def refuse_other_config(
        self, values: Mapping[str, Any], *, ignored: Sequence[str] = ()
    ) -> None:
        """Refuse to go on with a run under another configuration.

        Args:
            values: configuration wanted, as nested plain values.
            ignored: dotted names of fields that may differ.

        Raises:
            InputError: a field differs; names the first.
        """
        wanted = yaml.safe_load(yaml.safe_dump(dict(values)))
        found = first_difference(read_yaml(self.path / CONFIG), wanted, ignored=ignored)
        if found is not None:
            name, old, new = found
            raise InputError(
                f"{self.path}: its run has {name} = {old!r}, not {new!r}; repeat the run's own "
                "settings to resume it, or give another folder with --out"
            )

    # --- small files -----------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file; returns its path."""
        path = self.path / name
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file; numbers that are not finite become null. Returns its path."""
        text = json.dumps(_plain(value), allow_nan=False, indent=2)
        return self.write_text(name, text + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder.

        Args:
            name: file name.

        Returns:
            Its content, empty when the file is absent.

        Raises:
            InputError: it cannot be read as a JSON object.
        """
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a JSON file ({error})") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}: holds {type(value).__name__}, need an object")
        return value

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write rows as CSV, or as a JSON list when the name ends in .json.

        Args:
            name: file name.
            rows: the columns are those of the first row; a value absent later is left empty.

        Returns:
            Path of the file.
        """
        if name.endswith(".json"):
            return self.write_json(name, list(rows))
        text = io.StringIO()
        columns = list(rows[0]) if rows else []
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return self.write_text(name, text.getvalue())

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Write arrays as a compressed .npz; returns its path."""
        path = self.path / name
        content = io.BytesIO()
        np.savez_compressed(content, **dict(arrays))  # type: ignore[arg-type]
        write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))
        return path

    # --- metrics ---------------------------------------------------------------------------

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl; a torn last line is dropped by `rows`."""
        path = self.path / METRICS
        with told_if_unwritable(path), path.open("a", encoding="utf-8") as file:
            file.write(json_text(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl; a line that was cut off by a crash is left out."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [row for row in map(_row_or_none, lines) if row is not None]

    def forget_rows_from(self, step: int) -> None:
        """Drop the rows of `step` and later, which the resumed run will write again."""
        kept = [row for row in self.rows() if row["step"] < step]
        self.write_text(METRICS, "".join(json_text(row) + "\n" for row in kept))

    # --- checkpoints -----------------------------------------------------------------------

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state of training and keep the last two.

        Args:
            step: number of steps done.
            state: tensors, numbers and texts in nested mappings and lists.

        Returns:
            Path of the checkpoint.
        """
        folder = self.path / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        path = folder / f"step_{step:07d}.pt"

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # of its own files torch does not say what failed
                torch.save(dict(state), file)

        write_atomically(path, write)
        for old in self.checkpoints()[:-NUM_CHECKPOINTS_KEPT]:
            old.unlink()
        return path

    def forget_unfinished(self) -> None:
        """Remove what a killed process was writing; nobody else writes to the run meanwhile."""
        for folder in (self.path, self.path / CHECKPOINTS):
            for left in folder.glob(f".*{UNFINISHED}"):
                left.unlink(missing_ok=True)

    def latest_checkpoint(
        self, *, parts: Collection[str] = ()
    ) -> tuple[int, dict[str, Any]] | None:
        """Load the newest checkpoint, onto the processor.

        Args:
            parts: names that the state has to have.

        Returns:
            (number of steps done, state), or None when there is none.

        Raises:
            InputError: it cannot be read, or lacks a part.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            return None
        path = checkpoints[-1]
        remedy = "delete it to resume from the checkpoint before it, or from the start"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files have many
            raise InputError(
                f"{path}: cannot be read (damaged, or no checkpoint); {remedy}"
            ) from error
        missing = [name for name in parts if not isinstance(state, dict) or name not in state]
        if missing:
            raise InputError(f"{path}: is no checkpoint of a run (no {missing[0]!r}); {remedy}")
        return _step_of(path), state

    def checkpoints(self) -> list[Path]:
        """Find the checkpoints that are there, the newest last."""
        found = (self.path / CHECKPOINTS).glob("step_*.pt")
        return sorted((p for p in found if CHECKPOINT_NAME.fullmatch(p.name)), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _row_or_none(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result.update(_flat(value, f"{name}."))
        else:
            result[name] = value
    return result


def _plain(value: Any) -> Any:
    """Turn numpy and tensor scalars, tuples and paths into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim > 0:
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return _plain(value.item())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
