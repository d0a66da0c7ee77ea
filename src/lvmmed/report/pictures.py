"""Images of a run as data URIs: input views, matched pairs, nearest neighbours."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lvmmed.report.run import Run, read_arrays
from lvmmed.types import InputError

SAMPLES = "samples.npz"
"""File of a pre-training run with its input views and matched graphs."""

THUMBNAIL_PX = 144
"""Longest side of an embedded image: twice what the page shows, for sharp screens."""

NODE_PX = 96
"""Longest side of a node's picture."""

MAX_SAMPLES = 8
"""Input images shown of a run."""

MAX_QUERIES = 5
"""Test images shown with their neighbours of a run."""

_VIEW_ARRAYS = ("originals", "view_s", "view_t", "box_s", "box_t", "flipped_s", "flipped_t")
_GRAPH_ARRAYS = ("graph_view_s", "graph_view_t", "permutation", "permutation_first_order")
_NEIGHBOUR_ARRAYS = ("query", "neighbors", "query_label", "neighbor_labels", "similarity")


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A crop as fractions of the picture's sides, its top left corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSample:
    """One input image with its two views, images as data URIs."""

    original: str
    view_s: str
    view_t: str
    box_s: Box
    box_t: Box
    flipped_s: bool
    flipped_t: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchedPair:
    """What became of one node of view s.

    Attributes:
        node: its number, also that of its true partner.
        partner: node of view t it was matched to.
        first_order: node of view t it is matched to without edges.
    """

    node: int
    partner: int
    first_order: int

    @property
    def is_right(self) -> bool:
        """The match is the true one."""
        return self.node == self.partner

    @property
    def kind(self) -> str:
        """One of "right", "corrected" (wrong without edges), "wrong", "spoilt" (right without)."""
        was_right = self.first_order == self.node
        if self.is_right:
            return "right" if was_right else "corrected"
        return "spoilt" if was_right else "wrong"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MatchedGraph:
    """One graph matched between its two views.

    Attributes:
        images_s: pictures of the nodes in view s.
        images_t: pictures of the nodes in view t.
        pairs: what became of each node of view s.
        edges_s: (node, nearest neighbour) of view s; empty where the run kept none.
        edges_t: the same of view t.
    """

    images_s: UInt8[np.ndarray, "N H W 3"]
    images_t: UInt8[np.ndarray, "N H W 3"]
    pairs: tuple[MatchedPair, ...]
    edges_s: frozenset[tuple[int, int]] = frozenset()
    edges_t: frozenset[tuple[int, int]] = frozenset()

    @property
    def nodes_s(self) -> tuple[str, ...]:
        """Pictures of view s as data URIs."""
        return tuple(data_uri(image, longest_px=NODE_PX) for image in self.images_s)

    @property
    def nodes_t(self) -> tuple[str, ...]:
        """Pictures of view t as data URIs."""
        return tuple(data_uri(image, longest_px=NODE_PX) for image in self.images_t)

    def count(self, *kinds: str) -> int:
        """Number of pairs of the given kinds."""
        return sum(pair.kind in kinds for pair in self.pairs)

    @property
    def accuracy(self) -> float:
        """Share of nodes matched right."""
        return self.count("right", "corrected") / len(self.pairs)

    @property
    def accuracy_first_order(self) -> float:
        """Share of nodes matched right without edges."""
        return self.count("right", "spoilt") / len(self.pairs)

    @property
    def carried_edges(self) -> frozenset[tuple[int, int]]:
        """Edges of view s that the matching maps onto edges of view t: those that pay."""
        partner = {pair.node: pair.partner for pair in self.pairs}
        return frozenset(
            (i, j) for i, j in self.edges_s if (partner[i], partner[j]) in self.edges_t
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """One neighbour of a test image."""

    image: str
    label: str
    similarity: float
    is_right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One test image with its nearest training images, the nearest first."""

    image: str
    label: str
    neighbours: tuple[Neighbour, ...]


def data_uri(pixels: UInt8[np.ndarray, "H W 3"], *, longest_px: int = THUMBNAIL_PX) -> str:
    """Encode an image as a JPEG data URI, shrunk to at most `longest_px`, never enlarged."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    is_grey = bool(np.ptp(pixels, axis=2).max() <= 2)
    buffer = io.BytesIO()
    image = image.convert("L") if is_grey else image
    image.save(buffer, format="JPEG", quality=86, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def read_views(run: Run) -> tuple[ViewSample, ...]:
    """Read the input views of a pre-training run, at most `MAX_SAMPLES`.

    Args:
        run: pre-training run.

    Returns:
        Samples in the order of the file; empty when the run has none.

    Raises:
        InputError: samples.npz is broken or its arrays do not fit together.
    """
    path = run.folder / SAMPLES
    arrays = read_arrays(path, ())
    if arrays is None or "originals" not in arrays:
        return ()
    _check(path, arrays, _VIEW_ARRAYS, num_images=3)
    for name in ("box_s", "box_t"):
        if arrays[name].shape[1:] != (4,):
            raise InputError(f"{path}: {name} has shape {arrays[name].shape}, need [count, 4]")
    return tuple(
        ViewSample(
            original=data_uri(arrays["originals"][index], longest_px=224),
            view_s=data_uri(arrays["view_s"][index], longest_px=224),
            view_t=data_uri(arrays["view_t"][index], longest_px=224),
            box_s=_box(arrays["box_s"][index]),
            box_t=_box(arrays["box_t"][index]),
            flipped_s=bool(arrays["flipped_s"][index]),
            flipped_t=bool(arrays["flipped_t"][index]),
        )
        for index in range(min(len(arrays["originals"]), MAX_SAMPLES))
    )


def _box(corners: np.ndarray) -> Box:
    x0, y0, x1, y1 = (float(value) for value in np.clip(corners, 0, 1))
    return Box(x=x0, y=y0, width=x1 - x0, height=y1 - y0)


def read_graph(run: Run) -> MatchedGraph | None:
    """Read the first matched graph of a pre-training run.

    Args:
        run: pre-training run.

    Returns:
        The graph, or None for methods that match nothing.

    Raises:
        InputError: samples.npz is broken or its arrays do not fit together.
    """
    path = run.folder / SAMPLES
    graphs = matched_graphs_of(read_arrays(path, ()) or {}, path)
    return graphs[0] if graphs else None


def matched_graphs_of(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[MatchedGraph, ...]:
    """Take the matched graphs out of the arrays of samples.npz.

    Args:
        arrays: by name; those of the second graph end in "_1", of the third in "_2", and so on.
        path: file that the arrays are of, for messages.

    Returns:
        Graphs in order, none for methods that match nothing. Files written before the edges and
        further graphs were kept have one graph.

    Raises:
        InputError: the arrays do not fit together.
    """
    graphs: list[MatchedGraph] = []
    while f"permutation{graph_suffix(len(graphs))}" in arrays:
        graphs.append(_matched_graph(arrays, graph_suffix(len(graphs)), path))
    return tuple(graphs)


def graph_suffix(number: int) -> str:
    """End of the names of a graph's arrays: none for the first, then "_1", "_2", ..."""
    return f"_{number}" if number else ""


def _matched_graph(arrays: Mapping[str, np.ndarray], suffix: str, path: Path) -> MatchedGraph:
    names = tuple(name + suffix for name in _GRAPH_ARRAYS)
    _check(path, arrays, names, num_images=2)
    images_s, images_t, full, first = (arrays[name] for name in names)
    num_nodes = len(full)
    for name in names[2:]:
        values = arrays[name]
        if values.ndim != 1 or not np.all((values >= 0) & (values < num_nodes)):
            raise InputError(f"{path}: {name} points outside its graph")
    return MatchedGraph(
        images_s=images_s,
        images_t=images_t,
        pairs=tuple(
            MatchedPair(node=node, partner=int(partner), first_order=int(without))
            for node, (partner, without) in enumerate(zip(full, first, strict=True))
        ),
        edges_s=_edges(arrays, f"neighbors_s{suffix}", num_nodes, path),
        edges_t=_edges(arrays, f"neighbors_t{suffix}", num_nodes, path),
    )


def _edges(
    arrays: Mapping[str, np.ndarray], name: str, num_nodes: int, path: Path
) -> frozenset[tuple[int, int]]:
    """(node, neighbour) of a table of neighbours with -1 at empty slots."""
    if name not in arrays:
        return frozenset()
    heads = arrays[name]
    if (
        heads.ndim != 2
        or len(heads) != num_nodes
        or not np.all((heads >= -1) & (heads < num_nodes))
    ):
        raise InputError(f"{path}: {name} has shape {heads.shape} or points outside its graph")
    return frozenset(
        (node, int(head)) for node, row in enumerate(heads) for head in row if head >= 0
    )


def read_neighbours(run: Run) -> tuple[Query, ...]:
    """Read the nearest neighbours of a few test images, at most `MAX_QUERIES`.

    Args:
        run: run of a probe.

    Returns:
        Test images spread over the file; empty when the run has none.

    Raises:
        InputError: neighbors.npz is broken or its arrays do not fit together.
    """
    arrays = read_arrays(run.folder / "neighbors.npz", _NEIGHBOUR_ARRAYS)
    if arrays is None:
        return ()
    _check(run.folder / "neighbors.npz", arrays, _NEIGHBOUR_ARRAYS, num_images=1)
    shape = arrays["neighbors"].shape
    labels, similarity = arrays["neighbor_labels"], arrays["similarity"]
    if len(shape) != 5 or labels.shape != shape[:2] or similarity.shape != shape[:2]:
        raise InputError(
            f"{run.folder / 'neighbors.npz'}: neighbors has shape {shape}, need qxkSS3"
        )
    return tuple(
        Query(
            image=data_uri(arrays["query"][index]),
            label=str(arrays["query_label"][index]),
            neighbours=tuple(
                Neighbour(
                    image=data_uri(pixels),
                    label=str(label),
                    similarity=float(similarity),
                    is_right=str(label) == str(arrays["query_label"][index]),
                )
                for pixels, label, similarity in zip(
                    arrays["neighbors"][index],
                    arrays["neighbor_labels"][index],
                    arrays["similarity"][index],
                    strict=True,
                )
            ),
        )
        for index in spread(len(arrays["query"]), MAX_QUERIES)
    )


def spread(total: int, wanted: int) -> list[int]:
    """Choose up to `wanted` indices evenly over 0..total-1, so that ordered classes all show."""
    return [int(index) for index in np.linspace(0, total - 1, min(total, wanted)).round()]


def _check(
    path: Path, arrays: Mapping[str, np.ndarray], names: tuple[str, ...], *, num_images: int
) -> None:
    """Refuse missing arrays, unequal lengths, and images (first in `names`) of another type."""
    for name in names:
        if name not in arrays:
            raise InputError(f"{path}: lacks the array {name!r}; write it again with the run")
        if len(arrays[name]) != len(arrays[names[0]]):
            raise InputError(
                f"{path}: {name} has {len(arrays[name])} entries, "
                f"{names[0]} has {len(arrays[names[0]])}"
            )
    for name in names[:num_images]:
        shape = arrays[name].shape
        if arrays[name].dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise InputError(
                f"{path}: {name} is {arrays[name].dtype} {shape}, need uint8 [count, S, S, 3]"
            )
