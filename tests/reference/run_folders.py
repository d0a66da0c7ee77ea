"""Fabricated run folders with known numbers, written the way the file formats say."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ENVIRONMENT = {
    "format_version": 1,
    "lvmmed": "0.1.0",
    "python": "3.11.2",
    "packages": {"torch": "2.9.0", "numpy": "2.4.6"},
    "device": "cpu",
}


def write_pretrain(
    folder: Path,
    *,
    recipe: str = "lvm-med",
    seed: int = 0,
    rows: Sequence[Mapping[str, Any]] = (),
    method: Mapping[str, Any] | None = None,
    samples: Mapping[str, np.ndarray] | None = None,
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write a pre-training run; no rows or samples means that those files are absent."""
    folder.mkdir(parents=True)
    name = "simclr" if recipe == "simclr" else "lvm-med"
    fields = {"name": name} if name == "simclr" else {"name": name, "graph_size": 4, "margin": 1.0}
    config = {
        "recipe": recipe,
        "data": {"store": "stores/mixture"},
        "views": {"size": 64, "scale": [0.2, 1.0]},
        "model": {"backbone": "resnet18", "weights": "random"},
        "method": {**fields, **(method or {})},
        "train": {"batch_size": 64, "steps": 100, "seed": seed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_json(folder / "environment.json", ENVIRONMENT)
    write_json(
        folder / "card.json",
        {"width": 512, "datasets": {"mixture": {"licence": "CC BY 4.0", "num_images": 3776}}},
    )
    write_json(
        folder / "result.json",
        {
            "format_version": 1,
            "task": "pretrain",
            "data": "stores/mixture",
            "recipe": recipe,
            "method": name,
            "seeds": [seed],
            "metrics": {},
            "command": f"lvmmed pretrain --recipe {recipe}",
            "wall_s": 185.2,
            "device": "cpu",
            **(result or {}),
        },
    )
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if samples:
        np.savez(folder / "samples.npz", **samples)
    return folder


def write_judging(
    folder: Path,
    *,
    task: str = "probe",
    weights: str = "random",
    metrics: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]] = (),
    neighbors: Mapping[str, np.ndarray] | None = None,
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run of a probe or of fine-tuning on the data set "tumours"."""
    folder.mkdir(parents=True)
    config = {"task": task, "weights": weights, "data": "packs/tumours", "seeds": [0, 1, 2]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_json(folder / "environment.json", ENVIRONMENT)
    write_json(
        folder / "result.json",
        {
            "format_version": 1,
            "task": task,
            "data": "packs/tumours",
            "weights": weights,
            "recipe": None,
            "method": None,
            "seeds": [0, 1, 2],
            "selected_on": "val",
            "metrics": metrics,
            "num_cases": {"val": 50, "test": 394, "test_in": 531},
            "unit": "patient",
            "classes": ["cyst", "tumour"],
            "command": f"lvmmed {task} --weights {weights}",
            "wall_s": 12.5,
            "device": "cpu",
            "data_fingerprint": "ab" * 32,
            **(result or {}),
        },
    )
    if cases:
        write_cases(folder / "cases.csv", cases)
    if neighbors:
        np.savez(folder / "neighbors.npz", **neighbors)
    return folder


def write_cases(path: Path, cases: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as cases.csv; the header is that of the first row."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(cases[0]))
        writer.writeheader()
        writer.writerows(cases)


def make_cases(
    outcomes: Sequence[tuple[str, str]],
    *,
    classes: Sequence[str] = ("cyst", "tumour"),
    split: str = "test",
    model: str = "linear",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Make one case for each (label, prediction); the prediction has nearly all probability."""
    rows = []
    for number, (label, prediction) in enumerate(outcomes):
        shares = {name: 0.1 / (len(classes) - 1) for name in classes} | {prediction: 0.9}
        rows.append(
            {
                "split": split,
                "file": f"{split}/{number}.png",
                "group": f"p{number}",
                "label": label,
                "prediction": prediction,
                "seed": seed,
                "model": model,
                **{f"probability_{name}": share for name, share in shares.items()},
            }
        )
    return rows


def figure(mean: float, low: float, high: float, per_seed: Sequence[float] = ()) -> dict[str, Any]:
    """A metric as it stands in result.json."""
    return {"mean": mean, "ci95": [low, high], "per_seed": list(per_seed)}


def training_rows(
    columns: Mapping[str, Sequence[float]], *, every: int = 10
) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl from columns of equal length, `every` steps apart."""
    count = len(next(iter(columns.values())))
    return [
        {"step": every * row, **{name: values[row] for name, values in columns.items()}}
        for row in range(count)
    ]


def make_images(count: int, side: int = 24, seed: int = 0) -> np.ndarray:
    """Random colour images [count, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def make_samples(
    *, permutation: Sequence[int] | None = None, first_order: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of samples.npz: two input images and, with a permutation, one matched graph."""
    arrays: dict[str, np.ndarray] = {
        "originals": make_images(2),
        "view_s": make_images(2, seed=1),
        "view_t": make_images(2, seed=2),
        "box_s": np.array([[0.25, 0.125, 0.75, 0.5], [0, 0, 1, 1]], dtype=np.float32),
        "box_t": np.array([[0.0, 0.5, 0.5, 1.0], [0, 0, 1, 1]], dtype=np.float32),
        "flipped_s": np.array([True, False]),
        "flipped_t": np.array([False, False]),
    }
    if permutation is not None and first_order is not None:
        num_nodes = len(permutation)
        arrays |= {
            "graph_view_s": make_images(num_nodes, seed=3),
            "graph_view_t": make_images(num_nodes, seed=4),
            "permutation": np.array(permutation, dtype=np.int64),
            "permutation_first_order": np.array(first_order, dtype=np.int64),
        }
    return arrays


def make_neighbors(labels: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Arrays of neighbors.npz; each row is the query's label followed by its neighbours'."""
    table = np.array(labels)
    num_queries, width = table.shape
    return {
        "query": make_images(num_queries),
        "neighbors": make_images(num_queries * (width - 1)).reshape(
            num_queries, width - 1, 24, 24, 3
        ),
        "query_label": table[:, 0],
        "neighbor_labels": table[:, 1:],
        "similarity": np.full((num_queries, width - 1), 0.75, dtype=np.float32),
    }


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
