"""The solver as a CUDA graph: recorded once for a shape, then replayed in one launch.

A solve is hundreds of small kernels whose launches take longer than their work.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node; Nk: edge slots.
"""

import warnings
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

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
from lvmmed.types import InputError

NUM_WARM_UPS = 2
"""Solves before the recording, in which libraries set themselves up and the kernel is checked."""


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """A recorded solve and the places it reads from and writes to.

    Attributes:
        problem: is copied to before a replay.
        uniform: the random numbers, copied to as well.
        pattern: the numbers used where there is no generator.
        graph: what is replayed.
        matching: the result, overwritten by the next replay.
    """

    problem: Problem
    uniform: Tensor
    pattern: Tensor
    graph: torch.cuda.CUDAGraph
    matching: Matching


class GraphedSolve:
    """`solve` on an NVIDIA GPU for many problems of one shape.

    Another shape is recorded anew, which takes as long as a few solves; only the last recording is
    kept. Where recording fails a warning is given once and every call is an ordinary `solve`, as
    it always is without neighbour slots (k = 0).

    Args:
        device: where all problems will be.
        restarts: searches in a graph, at least 1; None = the default of `solve` for the size.
        iterations: exchanges in a search, 0 or more; None likewise.

    Raises:
        InputError: not a CUDA device, or restarts or iterations are too small.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        restarts: int | None = None,
        iterations: int | None = None,
    ) -> None:
        if device.type != "cuda":
            raise InputError(f"device: got {device}, CUDA graphs need 'cuda'; elsewhere use solve")
        check_effort(restarts, iterations)
        self._device = device
        self._restarts, self._iterations = restarts, iterations
        self._recording: _Recording | None = None
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
        generator: torch.Generator | None = None,
    ) -> Matching:
        """Solve one batch with the numbers that `solve` would draw; values are not checked.

        Args:
            vertex_affinity: worth of matching node i of view s with node c of view t.
            edge_affinity: worth of preserving an edge.
            neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
            neighbors_t: the same of view t.
            mask: True at real nodes; None when all are.
            generator: source of the jitter of starts and tenures; None = a fixed pattern.

        Returns:
            Permutations and their objectives.

        Raises:
            InputError: shapes or types do not fit, or the problem is not on a CUDA device.
        """
        if vertex_affinity.device.type != "cuda":
            raise InputError(
                f"vertex_affinity: on {vertex_affinity.device}, need {self._device}; move it there"
            )
        problem = searchable(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
        recording = self._recording_for(problem) if neighbors_s.shape[2] else None
        if recording is None:
            return solve(
                vertex_affinity,
                edge_affinity,
                neighbors_s,
                neighbors_t,
                mask=mask,
                restarts=self._restarts,
                iterations=self._iterations,
                generator=generator,
            )
        for held, given in zip(_tensors(recording.problem), _tensors(problem), strict=True):
            held.copy_(given)
        drawn = recording.pattern
        if generator is not None:
            drawn = draw_uniform(len(drawn), drawn, generator)
        recording.uniform.copy_(drawn)
        recording.graph.replay()
        found = recording.matching
        return Matching(found.permutation.clone(), found.objective.clone())

    def _recording_for(self, problem: Problem) -> _Recording | None:
        """Give the recording for these shapes, made now if need be; None where that fails."""
        old = self._recording
        if old is not None and _layout(old.problem) == _layout(problem):
            return old
        if not self._can_record:
            return None
        self._recording = None
        try:
            self._recording = self._record(problem)
        except RuntimeError as error:  # what CUDA raises, whatever the cause
            self._can_record = False
            warnings.warn(
                f"the solver could not be recorded as a CUDA graph and runs kernel by kernel "
                f"from now on ({error})",
                RuntimeWarning,
                stacklevel=3,
            )
        return self._recording

    def _record(self, problem: Problem) -> _Recording:
        held = replace(
            problem,
            vertex_affinity=problem.vertex_affinity.clone(),
            edge_affinity=problem.edge_affinity.clone(),
            neighbors_s=problem.neighbors_s.clone(),
            neighbors_t=problem.neighbors_t.clone(),
            mask=None if problem.mask is None else problem.mask.clone(),
        )
        vertex, num_nodes = held.vertex_affinity, held.vertex_affinity.shape[1]
        restarts, iterations = effort_for(num_nodes, self._restarts, self._iterations)
        pattern = draw_uniform(num_drawn(num_nodes, restarts, iterations), vertex, None)
        uniform = pattern.clone()

        def run() -> Matching:
            return search(held, uniform, restarts=restarts, iterations=iterations)

        with torch.cuda.device(vertex.device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(NUM_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                matching = run()
        return _Recording(
            problem=held, uniform=uniform, pattern=pattern, graph=graph, matching=matching
        )


def _tensors(problem: Problem) -> list[Tensor]:
    values = [
        problem.vertex_affinity,
        problem.edge_affinity,
        problem.neighbors_s,
        problem.neighbors_t,
        problem.mask,
    ]
    return [value for value in values if value is not None]


def _layout(problem: Problem) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(one.shape, one.dtype, one.device) for one in _tensors(problem)]
