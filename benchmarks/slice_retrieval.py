"""Finding a slice of a volume among all its slices, from another augmented view: frozen encoders.

Every slice gets pairs of views (crop, flip, jitter, blur, those of pre-training). For each slice of
the first view the most similar slice (cosine of pooled features) of the second view is taken, by
itself ("nearest") or in one pairing of all slices ("assigned"); it is right where it is the same
slice. All encoders see the same views. Intervals are bootstrapped over volumes.

Volumes whose bytes are in the store that encoders were trained on (--seen) are left out. With
--index only those of --split are taken: choices are made on `valid` and reported on `test`.

    python benchmarks/slice_retrieval.py RUN [RUN ...] --volumes DIR [--seen STORE] --size 48 \
        [--index INDEX.csv --split NAME] [--views 4] [--seed 0] [--out FILE.json]

RUN: what `lvmmed probe --weights` takes; "random" is an untrained encoder of the others' backbone,
and a file of weights without a card is read as one of that backbone too.
"""

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from lvmmed.augment.views import ImageBatch, apply_views, draw_views
from lvmmed.config import ViewsConfig
from lvmmed.data.prepare import prepare
from lvmmed.data.store import Store
from lvmmed.engine.run_folder import json_text
from lvmmed.evaluation.retrieval import (
    SeriesScores,
    assigned_items,
    chance_scores,
    nearest_items,
    score_items,
)
from lvmmed.evaluation.statistics import (
    Interval,
    Scorer,
    bootstrap_interval,
    paired_difference_interval,
)
from lvmmed.files import write_atomically
from lvmmed.models.backbones import Backbone
from lvmmed.models.cards import read_card
from lvmmed.models.weights import load_encoder
from lvmmed.recipes.image_feed import load_images, owners

STORED_TO_VIEW = 1.5
"""Short side of the stored slices over the side of a view."""
FINDERS = {"nearest": nearest_items, "assigned": assigned_items}
NAMES = [f"{finder} {field.name}" for finder in FINDERS for field in fields(SeriesScores)]


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Slices of a volume.

    Attributes:
        name: its file.
        owner: patient, else volume; what is resampled.
        images: slices in their order.
        places: numbers of the slices in the volume; empty ones are missing.
    """

    name: str
    owner: str
    images: ImageBatch
    places: np.ndarray


def volumes_to_read(folder: Path, index: Path | None, split: str | None) -> list[str]:
    """The folder, or the files in it that an index puts into a split."""
    if (index is None) != (split is None):
        raise SystemExit("--index and --split belong together")
    if index is None:
        return [str(folder)]
    with index.open(newline="", encoding="utf-8") as lines:
        splits = {Path(row["file"]).name: row["split"] for row in csv.DictReader(lines)}
    if split not in splits.values():
        raise SystemExit(f"--split {split}: {index} has {', '.join(sorted(set(splits.values())))}")
    return [str(path) for path in sorted(folder.iterdir()) if splits.get(path.name) == split]


def read_volumes(store: Store, seen: set[str]) -> tuple[list[Volume], int]:
    """Group the slices of a store by volume; gives also how many volumes had been seen."""
    names = ("volume_key", "slice_index", "sha256", "source")
    keys, places, hashes, sources = (store.column(name) for name in names)
    who = owners(store)
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None and places[row] is not None:
            rows.setdefault(key, []).append(row)
    fresh = [members for members in rows.values() if hashes[members[0]] not in seen]
    volumes = []
    for members in fresh:
        ordered = sorted(members, key=lambda row: places[row])
        volumes.append(
            Volume(
                name=Path(sources[ordered[0]]).name,
                owner=who[ordered[0]],
                images=load_images(store, ordered),
                places=np.array([places[row] for row in ordered]),
            )
        )
    return volumes, len(rows) - len(fresh)


@torch.no_grad()
def features_of(encoder: Backbone, images: torch.Tensor) -> np.ndarray:
    """Pooled features of length 1."""
    parts = [encoder(part).pooled.double() for part in images.split(128)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1).numpy()


def scores_of(
    encoder: Backbone, volume: Volume, settings: ViewsConfig, *, num_pairs: int, seeds: list[int]
) -> list[float]:
    """Scores of a volume in the order of `NAMES`, means over pairs of views."""
    found = []
    for pair in range(num_pairs):
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([*seeds, pair]).integers(2**62))
        )
        sides = []
        for _ in range(2):
            drawn = draw_views(volume.images.sizes, settings, generator=generator)
            views = apply_views(
                volume.images, drawn, settings=settings, mean=encoder.mean, std=encoder.std
            )
            sides.append(features_of(encoder, views.images))
        similarity = sides[0] @ sides[1].T
        ties = np.random.default_rng([*seeds, pair, 1])
        found.append(
            [
                value
                for find in FINDERS.values()
                for value in asdict(
                    score_items(find(similarity, generator=ties), volume.places)
                ).values()
            ]
        )
    return [float(value) for value in np.mean(found, axis=0)]


def mean_scorer(values: np.ndarray) -> Scorer:
    """Weighted means over volumes of a table [volumes, names]."""

    def scorer(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        means = weights @ values / weights.sum(axis=1, keepdims=True)
        return dict(zip(NAMES, means.T, strict=True))

    return scorer


def has_card(weights: str) -> bool:
    """Whether weights say themselves what backbone they are of."""
    return (Path(weights) / "card.json").is_file()


def backbone_of(weights: Sequence[str]) -> str:
    """Name the backbone of the first run that has a card."""
    for one in filter(has_card, weights):
        return read_card(Path(one) / "card.json").backbone
    raise SystemExit("random: give at least one run folder beside it, whose backbone it takes")


def measure(
    arguments: argparse.Namespace, volumes: Sequence[Volume], shared: str | None
) -> dict[str, np.ndarray]:
    """Table [volumes, names] of every encoder; `shared` is the backbone of those without a card."""
    settings = ViewsConfig(size=arguments.size)
    tables = {}
    for weights in arguments.runs:
        backbone = None if has_card(weights) else shared
        encoder = load_encoder(
            weights, backbone=backbone, size_px=arguments.size, seed=arguments.seed
        ).backbone.eval()
        tables[weights] = np.array(
            [
                scores_of(
                    encoder,
                    volume,
                    settings,
                    num_pairs=arguments.views,
                    seeds=[arguments.seed, number],
                )
                for number, volume in enumerate(volumes)
            ]
        )
    return tables


def chance_of(volumes: Sequence[Volume]) -> dict[str, float]:
    """Means over volumes of the scores of guessing."""
    rows = [list(asdict(chance_scores(volume.places)).values()) for volume in volumes]
    return dict(zip(NAMES, np.mean(rows, axis=0).tolist() * len(FINDERS), strict=True))


def summarise(
    tables: dict[str, np.ndarray], volumes: Sequence[Volume]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Intervals of every encoder, and of differences to the first."""
    groups = [volume.owner for volume in volumes]
    scorers = {name: mean_scorer(table) for name, table in tables.items()}
    first = next(iter(scorers))

    def plain(intervals: Mapping[str, Interval]) -> dict[str, Any]:
        return {
            name: {"mean": one.estimate, "ci95": [one.low, one.high]}
            for name, one in intervals.items()
        }

    alone = {
        name: plain(bootstrap_interval(scorer, groups, generator=np.random.default_rng(0)))
        for name, scorer in scorers.items()
    }
    differences = {
        name: plain(
            paired_difference_interval(
                [scorer], [scorers[first]], groups, generator=np.random.default_rng(0)
            )
        )
        for name, scorer in scorers.items()
        if name != first
    }
    return alone, differences


def markdown(result: dict[str, Any]) -> str:
    """A table of encoders, chance below, then of differences to the first encoder."""

    def shown(name: str, one: dict[str, Any]) -> str:
        factor = 1 if name.endswith("distance") else 100
        low, high = (factor * end for end in one["ci95"])
        return f"{factor * one['mean']:.1f} ({low:.1f} to {high:.1f})"

    heads = [
        name.replace("_", " ") + (" (slices)" if name.endswith("distance") else " %")
        for name in NAMES
    ]
    left_out = "not checked whether the volumes were trained on"
    if result["seen_was_checked"]:
        left_out = f"{result['num_seen']} volumes left out because their bytes were trained on"
    lines = [
        f"{result['num_volumes']} volumes, {result['num_slices']} slices, "
        f"{result['views']} pairs of views of {result['size']} px; {left_out}; 95 % intervals over "
        "volumes",
        "",
        f"| encoder | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for run, scores in result["encoders"].items():
        lines.append(f"| {run} | {' | '.join(shown(name, scores[name]) for name in NAMES)} |")
    chance = result["chance"]
    cells = [f"{chance[name] * (1 if name.endswith('distance') else 100):.1f}" for name in NAMES]
    lines.append(f"| chance | {' | '.join(cells)} |")
    for run, scores in result["differences_to_first"].items():
        cells = [shown(name, scores[name]) for name in NAMES]
        lines.append(f"| {run} less the first | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Prepare, encode, score, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--seen", type=Path, help="store that the encoders were trained on")
    parser.add_argument("--index", type=Path, help="list with columns file and split")
    parser.add_argument("--split", help="split of the index to take")
    parser.add_argument("--size", type=int, default=48, help="side of a view in px")
    parser.add_argument("--views", type=int, default=4, help="pairs of views of every slice")
    parser.add_argument("--seed", type=int, default=0, help="of views and random weights")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    shared = None if all(map(has_card, arguments.runs)) else backbone_of(arguments.runs)
    seen = set(Store.open(arguments.seen).column("sha256")) if arguments.seen else set()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "store"
        sources = volumes_to_read(arguments.volumes, arguments.index, arguments.split)
        prepare(sources, out, size=round(STORED_TO_VIEW * arguments.size))
        volumes, num_seen = read_volumes(Store.open(out), seen)
    if not volumes:
        raise SystemExit(f"{arguments.volumes}: no volume that was not trained on")
    tables = measure(arguments, volumes, shared)
    encoders, differences = summarise(tables, volumes)
    result = {
        **provenance(),
        "size": arguments.size,
        "views": arguments.views,
        "seed": arguments.seed,
        "split": arguments.split,
        "seen_was_checked": arguments.seen is not None,
        "num_volumes": len(volumes),
        "num_seen": num_seen,
        "num_slices": sum(len(volume.places) for volume in volumes),
        "chance": chance_of(volumes),
        "encoders": encoders,
        "differences_to_first": differences,
        "per_volume": {
            name: [
                {"volume": volume.name, **dict(zip(NAMES, row, strict=True))}
                for volume, row in zip(volumes, table.tolist(), strict=True)
            ]
            for name, table in tables.items()
        },
    }
    if arguments.out:
        text = json_text(result)
        write_atomically(arguments.out, lambda place: place.write_text(text, encoding="utf-8"))
    print(markdown(result))


if __name__ == "__main__":
    main()
