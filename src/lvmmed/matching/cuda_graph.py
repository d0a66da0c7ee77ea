"""The solver as a CUDA graph: recorded once for a shape, then replayed in one launch.

A solve is hundreds of small kernels whose launches take longer than their work. A recording serves
only after its first replay has found what the search found launched kernel by kernel. Setting
LVMMED_CUDA_GRAPH=0 in the environment turns recording off.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node; Nk: edge slots.
"""

import os
import warnings
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.checks import is_switched_on
from lvmmed.matching.graph import Problem
from lvmmed.matching.solver import (
    Matching,
    check_effort,
    draw_uniform,
    effort_for,
    num_drawn,
    search,
    searchable,
    solve,
)

SWITCH = "LVMMED_CUDA_GRAPH"
"""Environment variable: 0 turns recording off, 1 or nothing leaves it on."""

NUM_WARM_UPS = 2
"""Solves before the recording, in which libraries set themselves up and the kernel is checked."""

TOLERANCE = 1e-4
"""Largest relative difference of an objective of the first replay from that of the search."""


_Layout: TypeAlias = tuple[tuple[int, int], list[tuple[torch.Size, torch.dtype, torch.device]]]


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """A recorded solve and the places it reads from and writes to.

    Attributes:
        layout: what it serves.
        problem: is copied to before a replay.
        uniform: the random numbers, copied to as well.
        pattern: the numbers used where there is no generator.
        graph: what is replayed.
        matching: the result, overwritten by the next replay.
    """

    layout: _Layout
    problem: Problem
    uniform: Tensor
    pattern: Tensor
    graph: torch.cuda.CUDAGraph
    matching: Matching

    def replayed(self, problem: Problem, uniform: Tensor) -> Matching:
        """Solve a problem of the layout; the result is the caller's to keep."""
        for held, given in zip(_tensors(self.problem), _tensors(problem), strict=True):
            held.copy_(given)
        self.uniform.copy_(uniform)
        self.graph.replay()
        return Matching(self.matching.permutation.clone(), self.matching.objective.clone())


class GraphedSolve:
    """`solve` for a training loop: recorded on an NVIDIA GPU, on other devices `solve` itself.

    What is recorded is the second of two problems in a row that have the same shapes and effort;
    that takes as long as a few solves and waits for the device. Only the last recording is kept.
    Where recording fails or its first replay finds another objective than the search, one warning
    is given and every call is an ordinary `solve` from then on, as it always is without neighbour
    slots (k = 0).
    """

    def __init__(self) -> None:
        self._recording: _Recording | None = None
        self._last: _Layout | None = None
        self._can_record = True

    @torch.no_grad()
    def __call__(
        self,
        vertex_affinity: Float[Tensor, "B N N"],
        edge_affinity: Float[Tensor, "B Nk Nk"],
        neighbors_s: Int64[Tensor, "B N k"],
        neighbors_t: Int64[Tensor, "B N k"],
        *,
        mask: Bool[Tensor, "B N"] | None = None,
        restarts: int | None = None,
        iterations: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Matching:
        """Solve one batch with the numbers that `solve` would draw.

        Args:
            vertex_affinity: worth of matching node i of view s with node c of view t.
            edge_affinity: worth of preserving an edge.
            neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
            neighbors_t: the same of view t.
            mask: True at real nodes; None when all are.
            restarts: searches in a graph, at least 1; None = the default of `solve`.
            iterations: exchanges in a search, 0 or more; None likewise.
            generator: source of the jitter of starts and tenures; None = a fixed pattern.

        Returns:
            Permutations and their objectives.

        Raises:
            InputError: as `solve` does; LVMMED_CUDA_GRAPH is neither 0 nor 1.
        """
        is_wanted = is_switched_on(SWITCH, os.environ.get(SWITCH), default=True)
        if is_wanted and vertex_affinity.device.type == "cuda" and neighbors_s.shape[2]:
            check_effort(restarts, iterations)
            problem = searchable(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
            effort = effort_for(vertex_affinity.shape[1], restarts, iterations)
            recording = self._recording_for(problem, effort)
            if recording is not None:
                drawn = recording.pattern
                if generator is not None:
                    drawn = draw_uniform(len(drawn), drawn, generator)
                return recording.replayed(problem, drawn)
        return solve(
            vertex_affinity,
            edge_affinity,
            neighbors_s,
            neighbors_t,
            mask=mask,
            restarts=restarts,
            iterations=iterations,
            generator=generator,
        )

    def _recording_for(self, problem: Problem, effort: tuple[int, int]) -> _Recording | None:
        """Give the recording for these shapes, made now if it is time to; None where it is not."""
        layout = (effort, [(one.shape, one.dtype, one.device) for one in _tensors(problem)])
        last, self._last = self._last, layout
        if self._recording is not None and self._recording.layout == layout:
            return self._recording
        if not self._can_record or last != layout:
            return None
        self._recording = None  # its memory first
        try:
            self._recording = _record(problem, effort, layout)
        except RuntimeError as error:  # what CUDA raises, whatever the cause
            self._can_record = False
            warnings.warn(
                f"the solver could not be recorded as a CUDA graph and runs kernel by kernel "
                f"from now on ({error}). Set {SWITCH}=0 to silence this",
                RuntimeWarning,
                stacklevel=3,
            )
        return self._recording


def _record(problem: Problem, effort: tuple[int, int], layout: _Layout) -> _Recording:
    """Record a solve and check it; raises RuntimeError where either fails."""
    held = replace(
        problem,
        vertex_affinity=problem.vertex_affinity.clone(),
        edge_affinity=problem.edge_affinity.clone(),
        neighbors_s=problem.neighbors_s.clone(),
        neighbors_t=problem.neighbors_t.clone(),
        mask=None if problem.mask is None else problem.mask.clone(),
    )
    vertex, (restarts, iterations) = held.vertex_affinity, effort
    pattern = draw_uniform(num_drawn(vertex.shape[1], restarts, iterations), vertex, None)
    uniform = pattern.clone()

    def run() -> Matching:
        return search(held, uniform, restarts=restarts, iterations=iterations)

    with torch.cuda.device(vertex.device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(NUM_WARM_UPS):
                searched = run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # threads that load images may call CUDA meanwhile; the outer block leaves the stream of the
        # recording also where ending a recording that failed raises
        with (
            torch.cuda.stream(side),
            torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
        ):
            matching = run()
        recording = _Recording(
            layout=layout,
            problem=held,
            uniform=uniform,
            pattern=pattern,
            graph=graph,
            matching=matching,
        )
        check_replay(recording.replayed(problem, pattern).objective, searched.objective)
    return recording


def check_replay(replayed: Float[Tensor, "B"], searched: Float[Tensor, "B"]) -> None:
    """Compare the objectives of a replay with those of the same search run kernel by kernel.

    Args:
        replayed: what the replay found.
        searched: what the search found for the same problems and random numbers.

    Raises:
        RuntimeError: one differs by more than TOLERANCE, relative to it (or to 1 where smaller),
            or is not finite.
    """
    difference = (replayed - searched).abs() / searched.abs().clamp_min(1.0)
    worst = float(difference.max())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"its objectives differ from those of the search by {worst:.1e}")


def _tensors(problem: Problem) -> list[Tensor]:
    values = [
        problem.vertex_affinity,
        problem.edge_affinity,
        problem.neighbors_s,
        problem.neighbors_t,
        problem.mask,
    ]
    return [value for value in values if value is not None]
