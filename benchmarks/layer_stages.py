"""Stages of the matching layer: their times, and the least that each must read, write and compute.

Used by `matching_layer.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lvmmed.matching.affinity import tensor_cores

STAGES = {
    "regions": "maps and centres laid out",
    "projector": "projector",
    "graphs": "nearest-neighbour graphs",
    "messages": "message passing",
    "global": "global affinity",
    "local": "local affinity",
    "edges": "edge affinity",
    "noise": "noise drawn",
    "solve": "solve",
    "loss": "loss and its gradient",
    "batch": "matching of the whole batch",
    "region_matching": "matching of regions",
    "rest": "all else",
    "backward": "backward",
}
INSIDE = {"loss": ("solve",)}
"""Stages that are told apart inside another one; elsewhere they belong to what calls them."""


class Clock:
    """Marks in time: events of the device on a GPU, the wall clock on a processor."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Mark this place in the work of the device."""
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def sync(self) -> None:
        """Wait until all work is done."""
        if self._is_cuda:
            torch.cuda.synchronize()

    def between_ms(self, start: Any, end: Any) -> float:
        """Milliseconds from one mark to another, after `sync`."""
        return start.elapsed_time(end) if self._is_cuda else 1e3 * (end - start)


class Stages:
    """Times of stages that call each other; each without those inside it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._open: list[str] = []
        self._spans: list[tuple[str, str | None, Any, Any]] = []

    def __call__(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Give the work again, timed as the stage `name`."""

        def timed(*arguments: Any, **options: Any) -> Any:
            around = self._open[-1] if self._open else None
            if around not in (None, "rest") and name not in INSIDE.get(str(around), ()):
                return work(*arguments, **options)
            self._open.append(name)
            start = self.clock.mark()
            try:
                return work(*arguments, **options)
            finally:
                self._spans.append((name, around, start, self.clock.mark()))
                self._open.pop()

        return timed

    def collect(self) -> dict[str, float]:
        """Milliseconds of each stage since the last call."""
        self.clock.sync()
        found = dict.fromkeys(STAGES, 0.0)
        for name, around, start, end in self._spans:
            spent = self.clock.between_ms(start, end)
            found[name] += spent
            if around is not None:
                found[around] -= spent
        self._spans.clear()
        return found


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the floor of a stage depends on.

    Attributes:
        images: of a batch.
        batch_part: images that the matching of the whole batch takes at once.
        graphs: of all partitions.
        nodes: of a graph.
        neighbors: of a node.
        width: channels of the map.
        regions: positions of the map.
        projection: length of a projection.
        layers: graph convolutions.
        map_bytes: of one number of the map.
        effort: restarts and iterations of the search.
        region_matchings: of the whole batch, one pair of regions of each image at a time.
    """

    images: int
    batch_part: int
    graphs: int
    nodes: int
    neighbors: int
    width: int
    regions: int
    projection: int
    layers: int
    map_bytes: int
    effort: tuple[int, int]
    region_matchings: int


def demands(sizes: Sizes) -> dict[str, tuple[float, float]]:
    """Bytes and floating-point operations of each stage, at least.

    Inputs are read once and results written once, in single precision but for the maps; products
    count twice their multiplications, backward twice the products of its stages. The local term
    must go back through the pairs of regions that were chosen alone, some 0.4 of them in each of
    two directions and two branches (ours multiplies whole matrices there, twice the products of the
    forward pass, on tensor cores). The search reads four rows of the table of pairs and the entries
    that an exchange touches. Of the matching of the whole batch only the cosines count, of that of
    regions also their projections and the distances that pair them.
    """
    s, g, n, f = sizes, sizes.graphs, sizes.nodes, sizes.projection
    nodes, edges = 2 * g * n * f, n * s.neighbors
    maps = 2 * s.images * s.regions * s.width
    partitions = g * n / s.images
    restarts, iterations = s.effort
    chosen = 4 * 0.4 * g * n * n * s.regions
    products = {
        "projector": 2.0 * 2 * s.images * s.width * f,
        "messages": s.layers * (2.0 * nodes * f + 2 * nodes * n),
        "global": 2.0 * g * n * n * f,
        "edges": 2.0 * g * edges * edges * f,
        "batch": 2.0 * s.images * s.batch_part * f,
        "region_matching": 2.0 * maps * f
        + 2.0 * s.images * s.regions**2 * f
        + 2.0 * s.region_matchings * s.images * s.batch_part * f,
    }
    made = {"global": g * n * n, "edges": g * edges * edges}
    floats = {
        "projector": 2 * s.images * (s.width + f) + s.width * f,
        "graphs": nodes + 2 * 2 * g * edges,
        "messages": 2 * nodes + s.layers * f * f,
        "global": nodes + made["global"],
        "edges": nodes + made["edges"],
        "noise": sum(made.values()),
        "loss": 3 * sum(made.values()),
        "batch": 2 * s.images * f + s.images * s.batch_part,
        "region_matching": maps
        + s.width * f
        + 2 * s.images * s.regions * f
        + s.region_matchings * s.images * s.batch_part,
        "solve": (4 * n * n + 2 * (2 * n - 3)) * iterations * restarts * g,
    }
    local_bytes = partitions * maps * s.map_bytes
    found = {name: (4.0 * count, products.get(name, 0.0)) for name, count in floats.items()}
    found["graphs"] = found["graphs"][0], 3.0 * nodes * n
    found["solve"] = found["solve"][0], found["solve"][0] / 4
    found["regions"] = 2.0 * maps * s.map_bytes, 0.0
    found["local"] = (
        local_bytes + 4 * made["global"],
        2.0 * g * n * n * s.regions**2 * s.width,
    )
    found["backward"] = (
        local_bytes + maps * s.map_bytes + 4.0 * (nodes + sum(made.values())),
        2 * sum(products.values()) + 4.0 * chosen * s.width,
    )
    return found


def measure_rates(clock: Clock, device: torch.device) -> dict[str, float]:
    """Bandwidth in GB/s, the better one of a small and a large copy, and GFLOP/s of a matmul.

    On a GPU in TF32, the fastest way in which the layer multiplies.
    """
    is_cuda = device.type == "cuda"

    def fastest_ms(work: Callable[[], object], count: int) -> float:
        times = []
        for _ in range(30):
            start = clock.mark()
            for _ in range(count):
                work()
            end = clock.mark()
            clock.sync()
            times.append(clock.between_ms(start, end) / count)
        return min(times)

    speeds = []
    for num_bytes in (2**23, 2**29) if is_cuda else (2**18, 2**26):
        given = torch.zeros(num_bytes // 4, device=device)
        made = torch.empty_like(given)
        work = lambda made=made, given=given: made.copy_(given)  # noqa: E731
        speeds.append(2 * num_bytes / fastest_ms(work, 100 if num_bytes < 2**26 else 3) / 1e6)
    side = 8192 if is_cuda else 384  # short enough for a busy processor not to interrupt it
    square = torch.randn(side, side, device=device)  # constant bits would let clocks rise
    with tensor_cores(is_cuda):
        matmul_ms = fastest_ms(lambda: square @ square, 1)
    return {"gb_per_s": max(speeds), "gflop_per_s": 2 * side**3 / matmul_ms / 1e6}


def make_rows(
    stages: dict[str, float],
    needed: dict[str, tuple[float, float]],
    rates: dict[str, float],
    encoder_ms: float,
) -> list[dict[str, Any]]:
    """One row a stage: time, share of the encoder's step, bytes, operations and floor.

    Stages that the method does not have took no time and get no row.
    """
    rows = []
    for name, label in STAGES.items():
        if not stages[name]:
            continue
        num_bytes, operations = needed.get(name, (0.0, 0.0))
        by_bytes = num_bytes / rates["gb_per_s"] / 1e6
        by_operations = operations / rates["gflop_per_s"] / 1e6
        rows.append(
            {
                "stage": label,
                "ms": stages[name],
                "percent_of_encoder": 100 * stages[name] / encoder_ms,
                "bytes": num_bytes,
                "flop": operations,
                "floor_ms": max(by_bytes, by_operations),
            }
        )
    return rows
