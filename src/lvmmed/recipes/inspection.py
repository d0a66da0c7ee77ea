"""What is in a store, a run folder or a weight file, in a few rows."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmmed.data.intensity import parse_policy
from lvmmed.data.sheet import store_sheet
from lvmmed.data.store import Store
from lvmmed.engine.run_folder import RunFolder
from lvmmed.files import is_there, picture_folder, refuse_other_than_png
from lvmmed.models.weights import load_encoder
from lvmmed.recipes.matching_inspection import draw_matching
from lvmmed.types import Card, InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        title: what the path is.
        rows: (what, value) pairs to show.
    """

    title: str
    rows: tuple[tuple[str, str], ...]


def inspect_path(
    path: Path,
    *,
    sheet: Path | None = None,
    matching: Path | None = None,
    num_graphs: int | None = None,
    backbone: str | None = None,
) -> Inspection:
    """Describe a store, a run folder or a weight file.

    Args:
        path: folder or file.
        sheet: where to write a contact sheet (PNG), whose folder is made when absent; stores only.
        matching: where to draw matched graphs (PNG); runs of lvm-med only.
        num_graphs: how many of them at most; None = all that the run kept.
        backbone: name in timm, for weights that do not say; weight files only.

    Returns:
        What was found, ready to show.

    Raises:
        InputError: nothing there, not one of the three, a picture is asked of something else, or
            cannot be written, a backbone is named for something else.
    """
    if num_graphs is not None and matching is None:
        raise InputError(f"--graphs: got {num_graphs} without --matching; name a PNG with it")
    if not is_there(path):
        raise InputError(f"{path}: no such file or folder")
    if backbone is not None and path.is_dir():
        raise InputError(f"--backbone: {path} is a folder; only a file of weights takes it")
    if (path / "store.json").is_file() or (path / ".parts").is_dir():
        if matching is not None:
            raise InputError(f"--matching: {path} is an image store; give a run of lvm-med")
        return _store(Store.open(path), sheet)
    if sheet is not None:
        raise InputError(f"--sheet: {path} is no image store; only a store has a contact sheet")
    if path.is_dir():
        folder = RunFolder.open(path)
        drawn = () if matching is None else draw_matching(folder, matching, num_graphs=num_graphs)
        return _run(folder, drawn)
    if matching is not None:
        raise InputError(f"--matching: {path} is a file of weights; give its run folder")
    return _weights(path, backbone)


def _weights(path: Path, backbone: str | None) -> Inspection:
    loaded = load_encoder(str(path), backbone=backbone, option="--backbone")
    num_parameters = sum(p.numel() for p in loaded.backbone.parameters())
    rows = [*_card(loaded.card), ("parameters", f"{num_parameters:,}")]
    return Inspection(title=f"weights {path}", rows=tuple(rows))


def _store(store: Store, sheet: Path | None) -> Inspection:
    """Describe a store, and write its contact sheet where one is asked for."""
    if sheet is not None:
        refuse_other_than_png(sheet, "--sheet")
        with picture_folder(sheet, "--sheet"):
            store_sheet(store, sheet)
    rows = [
        ("images", str(len(store))),
        ("short side", f"{store.meta['size']} px"),
        ("fingerprint", store.fingerprint[:16]),
        ("damaged files", ", ".join(store.verify()) or "none"),
    ]
    for column in ("dataset", "modality", "organ"):
        rows.append((column, _counted(store.column(column))))
    policies = [parse_policy(text).kind for text in store.column("intensity")]
    rows.append(("intensity", _counted(policies)))
    patients = {key for key in store.column("patient_key") if key}
    rows.append(("patients", str(len(patients)) if patients else "unknown"))
    return Inspection(title=f"image store {store.path}", rows=tuple(rows))


def _counted(values: Sequence[str | None], *, most: int = 12) -> str:
    counts = Counter(value or "unknown" for value in values).most_common()
    text = ", ".join(f"{name} {count}" for name, count in counts[:most])
    return text + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _run(folder: RunFolder, drawn: tuple[tuple[str, str], ...]) -> Inspection:
    if not folder.is_finished:
        state = f"not finished; {len(folder.rows())} rows of metrics"
        return Inspection(title=f"run {folder.path}", rows=(("state", state), *drawn))
    result = folder.read_json("result.json")
    rows = [
        (name, str(result.get(name)))
        for name in ("task", "data", "weights", "recipe", "method", "seeds", "device")
        if result.get(name) is not None
    ]
    for split, metrics in _mappings(result.get("metrics")):
        figures = [(name, value) for name, value in _mappings(metrics) if "mean" in value]
        rows += [(f"{split} {name}", _figure(value)) for name, value in figures]
    warnings = result.get("warnings")
    rows += [("warning", str(text)) for text in (warnings if isinstance(warnings, list) else ())]
    return Inspection(title=f"run {folder.path}", rows=(*rows, *drawn))


def _mappings(values: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the items of a mapping that are mappings themselves; a file may hold anything."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            yield name, value


def _figure(value: Mapping[str, Any]) -> str:
    mean, interval = value.get("mean"), value.get("ci95")
    text = f"{mean:.4g}" if isinstance(mean, float | int) else str(mean)
    if (
        isinstance(interval, list)
        and len(interval) == 2
        and all(isinstance(end, float | int) for end in interval)
    ):
        text += f" ({interval[0]:.4g} to {interval[1]:.4g})"
    return text


def _card(card: Card) -> list[tuple[str, str]]:
    return [
        ("backbone", card.backbone),
        ("features", str(card.width)),
        ("input", f"{card.input_size} px"),
        ("method", str(card.method)),
        ("recipe", str(card.recipe)),
        ("step", str(card.step)),
        ("derived from", card.derived_from),
        ("intensity", json.dumps(dict(card.intensity_policies))),
        ("data sets", ", ".join(card.datasets) or "unknown"),
    ]
