"""Reads what a run folder holds; files that are absent are noted, files that are broken refused."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lvmmed.types import FORMAT_VERSION, InputError

PRETRAIN = "pretrain"
"""Task of a run that learnt an encoder; every other task judges one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the small files of one run folder say; arrays are read when they are needed.

    Attributes:
        folder: the run folder.
        name: shortest end of the folder's path that no other run of the report has.
        task: "pretrain", "probe", "classification", ...
        result: content of result.json, empty while the run has not finished.
        config: content of config.yaml, empty when absent.
        config_text: config.yaml as it stands.
        environment: content of environment.json, empty when absent.
        card: content of card.json, empty when absent.
        metrics: rows of metrics.jsonl in order of step.
        notes: what is absent, in words.
    """

    folder: Path
    name: str
    task: str
    result: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    card: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the run: those of its result, else that of its configuration."""
        seeds = self.result.get("seeds")
        if isinstance(seeds, list):
            return tuple(int(seed) for seed in seeds if isinstance(seed, int))
        train = self.config.get("train")
        seed = train.get("seed") if isinstance(train, Mapping) else self.config.get("seed")
        return (seed,) if isinstance(seed, int) else ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Where the encoders came from, as the user named it; several for several encoders."""
        named = self.result.get("weights") or self.config.get("weights")
        if isinstance(named, list):
            return tuple(str(name) for name in named)
        return (str(named),) if named else ()

    @property
    def encoders(self) -> tuple[str, ...]:
        """What tells the encoders from others: the hash of their card, or where they lie."""
        return tuple(_encoder_identity(name) for name in self.weights)

    @property
    def backbone(self) -> str:
        """Name of the encoders' architecture in timm; "" when not recorded."""
        model = self.config.get("model")
        of_training = model.get("backbone") if isinstance(model, Mapping) else None
        named = self.result.get("backbone") or self.config.get("backbone") or of_training
        return str(named or "")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that the run recorded in any of its files, each once, in order."""
        found: list[str] = []
        for source in (self.result, self.environment, self.card, *self.metrics):
            texts = source.get("warnings")
            found.extend(str(text) for text in (texts if isinstance(texts, list) else ()))
        return tuple(dict.fromkeys(found))


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read run folders in the order given.

    Args:
        folders: run folders of any task.

    Returns:
        One run a folder.

    Raises:
        InputError: no folder, the same folder twice, a folder that is no run, a file that cannot
            be read, or one written by a newer version of the package.
    """
    if not folders:
        raise InputError("runs: none given; name at least one run folder")
    resolved = [folder.resolve() for folder in folders]
    for index, folder in enumerate(resolved):
        if folder in resolved[:index]:
            raise InputError(f"{folders[index]}: given twice; name each run folder once")
    names = distinct_names(resolved)
    return tuple(_read_run(folder, name) for folder, name in zip(folders, names, strict=True))


def distinct_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Name each path by as many of its last parts as it takes to be the only one so named."""
    names = []
    for folder in folders:
        depth = 1
        while depth < len(folder.parts) and any(
            other != folder and other.parts[-depth:] == folder.parts[-depth:] for other in folders
        ):
            depth += 1
        names.append("/".join(folder.parts[-depth:]))
    return tuple(names)


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {state}; give a run folder of pretrain, probe or finetune")
    result = _read_json(folder / "result.json")
    config, config_text = _read_config(folder / "config.yaml")
    if result is None and config is None:
        raise InputError(f"{folder}: no run folder (it has neither config.yaml nor result.json)")
    metrics, broken_line = _read_lines(folder / "metrics.jsonl")
    environment = _read_json(folder / "environment.json")
    notes = [
        text
        for is_noted, text in (
            (result is None, "no result.json: the run has not finished"),
            (config is None, "no config.yaml: settings unknown"),
            (environment is None, "no environment.json"),
            (broken_line, "the last line of metrics.jsonl was cut off and is left out"),
        )
        if is_noted
    ]
    return Run(
        folder=folder,
        name=name,
        task=_task_of(result or {}, config or {}),
        result=result or {},
        config=config or {},
        config_text=config_text,
        environment=environment or {},
        card=_read_json(folder / "card.json") or {},
        metrics=metrics,
        notes=tuple(notes),
    )


def _encoder_identity(weights: str) -> str:
    if weights == "random" or weights.startswith("timm:"):
        return weights
    path = Path(weights).resolve()
    card = (path.parent if path.suffix == ".safetensors" else path) / "card.json"
    try:
        known = (_read_json(card) or {}).get("sha256")
    except InputError:
        known = None  # a card outside the report does not stop it
    is_of_run = path.name == "encoder.safetensors"
    return str(known or (path.parent if is_of_run else path))


def training_settings(weights: str) -> Mapping[str, Any]:
    """Read the settings of pre-training that lie beside weights.

    Args:
        weights: run folder, or a file in it, as the user named it.

    Returns:
        Content of its config.yaml; empty where there is none, or none of pre-training.
    """
    if weights == "random" or weights.startswith("timm:"):
        return {}
    path = Path(weights)
    try:
        found, _ = _read_config((path if path.is_dir() else path.parent) / "config.yaml")
    except InputError:
        found = None  # a file outside the report does not stop it
    return found if found and _task_of({}, found) == PRETRAIN else {}


def _task_of(result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if "task" in result:
        return str(result["task"])
    if "task" in config:
        return str(config["task"])
    return PRETRAIN if "method" in config and "views" in config else "unknown"


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a mapping, None when the file is absent; refuse other content and newer formats."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({_first_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, need a JSON object")
    _refuse_newer(path, value)
    return value


def _refuse_newer(path: Path, value: Mapping[str, Any]) -> None:
    version = value.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version!r}, this version of lvmmed reads up to "
            f"{FORMAT_VERSION}; update lvmmed"
        )


def _read_config(path: Path) -> tuple[dict[str, Any] | None, str]:
    if not path.is_file():
        return None, ""
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({_first_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, need a mapping of groups")
    _refuse_newer(path, value)
    return value, text


def _read_lines(path: Path) -> tuple[tuple[dict[str, Any], ...], bool]:
    """Read JSON lines; True when the last line was cut off, as a killed run leaves it."""
    if not path.is_file():
        return (), False
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)})") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return tuple(rows), True
            raise InputError(f"{path}: line {number} is not JSON ({_first_line(error)})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} holds {type(row).__name__}, need an object")
        rows.append(row)
    return tuple(rows), False


def read_arrays(path: Path, required: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Read the arrays of an .npz file without running anything it holds.

    Args:
        path: file written by a run.
        required: names that must be there.

    Returns:
        Every array by name, or None when there is no such file.

    Raises:
        InputError: the file is broken, holds objects, or lacks a required array.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as .npz ({_first_line(error)})") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise InputError(f"{path}: lacks the array {missing[0]!r}; write it again with the run")
    return arrays


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
