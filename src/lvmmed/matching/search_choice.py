"""Which search runs: the Triton kernel where it may and has passed a check, else the torch search.

The kernel is off unless the environment sets LVMMED_TRITON=1: it agrees with the torch search in
Triton's interpreter, on a CPU, and has not been run on a GPU yet. Even when it is on it serves only
after a check on the device at hand. Where it cannot serve or fails the check, one warning tells why
and torch searches on.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; R: searches in a graph; T: iterations.
"""

import functools
import importlib.util
import os
import warnings

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.checks import is_switched_on
from lvmmed.matching.graph import Problem
from lvmmed.matching.tabu import gradient_at, tabu_search
from lvmmed.matching.terms import DenseTerms, PairTerms
from lvmmed.matching.triton_search import MAX_NODES, padded_nodes, triton_tabu_search

SWITCH = "LVMMED_TRITON"
"""Environment variable: 1 lets the kernel serve, 0 or nothing does not."""

CHECKED_STEPS, CHECKED_SEARCHES, CHECKED_GRAPHS = 24, 4, 2
"""Effort of the check: iterations, searches in a graph, graphs of each kind."""

TOLERANCE = 1e-4
"""Largest relative difference of two objectives that passes the check."""


def is_kernel_wanted(switch: str | None, device_type: str) -> bool:
    """Tell whether the user asked for the kernel on a device of its kind.

    Args:
        switch: value of LVMMED_TRITON, None where it is not set.
        device_type: kind of device the tensors are on.

    Returns:
        True where it is to serve if it can; on other devices than CUDA the switch changes nothing.

    Raises:
        InputError: the switch is neither 0 nor 1.
    """
    return is_switched_on(SWITCH, switch, default=False) and device_type == "cuda"


def objection_to_kernel(
    *, dtype: torch.dtype, num_nodes: int, is_dense: bool, has_triton: bool
) -> str | None:
    """Say why the kernel cannot serve, before any check on the device.

    Args:
        dtype: precision of the affinities.
        num_nodes: nodes of a graph.
        is_dense: whether the second-order terms are one table.
        has_triton: whether Triton is installed.

    Returns:
        The reason, None where it may serve.
    """
    if not has_triton:
        return "Triton is not installed"
    if num_nodes > MAX_NODES:
        return f"graphs have N = {num_nodes} nodes, it takes at most {MAX_NODES}"
    if dtype != torch.float32:
        return f"affinities are {dtype}, it takes torch.float32"
    if not is_dense:
        return "the batch is too large for a table of all pairs of assignments; use smaller batches"
    return None


def search_labels(
    terms: PairTerms,
    vertex_affinity: Float[Tensor, "B N N"],
    starts: Int64[Tensor, "B R N"],
    tenures: Float[Tensor, "T R 2"],
    *,
    mask: Bool[Tensor, "B N"] | None,
) -> Int64[Tensor, "B R N"]:
    """Search with the kernel where it may serve and has passed its check, else with torch.

    Args:
        terms: the second-order terms.
        vertex_affinity: the first-order terms.
        starts: where each search begins.
        tenures: uniform numbers in 0..1 that set how long the two labels stay tabu.
        mask: True at real nodes; None when all are.

    Returns:
        The best permutation that each search met.
    """
    if is_kernel_wanted(os.environ.get(SWITCH), vertex_affinity.device.type) and _may_serve(
        terms, vertex_affinity
    ):
        assert isinstance(terms, DenseTerms)
        return triton_tabu_search(terms, vertex_affinity, starts, tenures, mask=mask)
    return tabu_search(terms, vertex_affinity, starts, tenures, mask=mask)


def _may_serve(terms: PairTerms, vertex_affinity: Float[Tensor, "B N N"]) -> bool:
    num_nodes = vertex_affinity.shape[1]
    if num_nodes < 2:
        return False  # nothing to search
    objection = objection_to_kernel(
        dtype=vertex_affinity.dtype,
        num_nodes=num_nodes,
        is_dense=isinstance(terms, DenseTerms),
        has_triton=_has_triton(),
    )
    if objection is not None:
        _warn(objection)
        return False
    return has_passed(vertex_affinity.device, padded_nodes(num_nodes))


def check_kernel(device: torch.device, padded: int) -> float:
    """Solve eight small instances with both searches, two sizes with and without padded nodes.

    Affinities are multiples of 1/64, so that all sums are exact in any order, even in TF32: both
    searches must make the same exchanges, those between equals included.

    Args:
        device: where to run.
        padded: side of the kernel's blocks, 8, 16 or 32; each has a binary of its own.

    Returns:
        The largest difference of the objectives of the same search, as a share of the larger one.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for num_nodes in (5 * padded // 8, padded):
        for num_real in (num_nodes, num_nodes - num_nodes // 4):
            problem, starts, tenures = exact_instance(
                num_nodes, num_real, generator=generator, device=device
            )
            terms = DenseTerms(problem)
            given = (terms, problem.vertex_affinity, starts, tenures)
            by_torch, by_kernel = (
                _objectives(terms, problem.vertex_affinity, search(*given, mask=problem.mask))
                for search in (tabu_search, triton_tabu_search)
            )
            scale = torch.maximum(by_torch.abs(), by_kernel.abs()).clamp_min(1.0)
            worst = max(worst, float(((by_torch - by_kernel).abs() / scale).max()))
    return worst


def exact_instance(
    num_nodes: int, num_real: int, *, generator: torch.Generator, device: torch.device
) -> tuple[Problem, Int64[Tensor, "B R N"], Float[Tensor, "T R 2"]]:
    """Draw a problem of affinities in steps of 1/64, with starts and tenures.

    Args:
        num_nodes: nodes of a graph.
        num_real: how many of them are real; with all of them there is no mask.
        generator: a CPU generator.
        device: where the result goes.

    Returns:
        The problem, starts that leave padded nodes alone, and tenures.
    """
    num_graphs, num_slots = CHECKED_GRAPHS, min(5, num_nodes - 1)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-256, 257, shape, generator=generator) / 64

    def draw_graph() -> Tensor:
        ways = torch.rand(num_graphs, num_nodes, num_nodes - 1, generator=generator).argsort(2)
        own = torch.arange(num_nodes).view(1, -1, 1)
        return ((own + 1 + ways[..., :num_slots]) % num_nodes).to(device)

    is_real = torch.arange(num_nodes) < num_real
    vertex = draw(num_graphs, num_nodes, num_nodes) * (is_real & is_real.unsqueeze(1))
    problem = Problem(
        vertex_affinity=vertex.to(device),
        edge_affinity=draw(num_graphs, num_nodes * num_slots, num_nodes * num_slots).to(device),
        neighbors_s=draw_graph(),
        neighbors_t=draw_graph(),
        mask=None if num_real == num_nodes else is_real.expand(num_graphs, -1).to(device),
    )
    order = torch.rand(num_graphs, CHECKED_SEARCHES, num_nodes, generator=generator)
    starts = torch.where(is_real, order, 1.0 + torch.arange(num_nodes)).argsort(2)
    tenures = torch.rand(CHECKED_STEPS, CHECKED_SEARCHES, 2, generator=generator)
    return problem, starts.to(device), tenures.to(device)


def _objectives(
    terms: DenseTerms, vertex_affinity: Float[Tensor, "B N N"], permutations: Int64[Tensor, "B R N"]
) -> Float[Tensor, "B R"]:
    """Half the first-order terms and half the gradient, which counts every pair from both ends."""
    gradient = gradient_at(terms, vertex_affinity, permutations)
    both = gradient + vertex_affinity.flatten(1).unsqueeze(1)
    n = permutations.shape[2]
    at = torch.arange(n, device=permutations.device) * n + permutations
    return torch.gather(both, 2, at).sum(2) / 2


def has_passed(device: torch.device, padded: int) -> bool:
    """Check once a device and binary; never while a CUDA graph is captured."""
    index = torch.cuda.current_device() if device.index is None else device.index
    verdicts = _verdicts()
    if (index, padded) not in verdicts:
        if torch.cuda.is_current_stream_capturing():
            _warn("it cannot be checked while a CUDA graph is captured; call solve once before")
            return False
        verdicts[index, padded] = _passes(torch.device("cuda", index), padded)
    return verdicts[index, padded]


@functools.cache
def _verdicts() -> dict[tuple[int, int], bool]:
    """Hold what the checks of this process found, by device and side of the blocks."""
    return {}


def _passes(device: torch.device, padded: int) -> bool:
    try:
        difference = check_kernel(device, padded)
    except Exception as error:  # whatever the compiler or driver raises
        _warn(f"it did not run on {device} ({type(error).__name__}: {error})")
        return False
    if not difference <= TOLERANCE:
        _warn(f"on {device} its objectives differ from the torch search's by {difference:.1e}")
        return False
    return True


@functools.cache
def _told() -> list[str]:
    """Hold why the kernel is not used, once that has been said in this process."""
    return []


def _warn(reason: str) -> None:
    """Warn the first time only, whatever the reason: each block side could give one of its own."""
    if _told():
        return
    _told().append(reason)
    warnings.warn(
        f"the Triton kernel for matching is not used: {reason}. The torch search goes on; "
        f"unset {SWITCH} to silence this",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
