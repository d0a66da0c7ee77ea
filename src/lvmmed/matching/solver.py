"""Batched heuristic for graph matching (a quadratic assignment problem in Lawler's form).

A tabu search over exchanges of two labels runs in lock-step for all graphs and restarts; it takes
the place of the LPMP solver of the paper. At its default effort it measures within a percent of the
best known matching up to 32 nodes, on average, and makes no promise on a single instance;
`bound.bound` gives a certificate.

Letters used in shapes:
    B: graphs in the batch.
    N: nodes of a graph (the longest one, where sizes differ).
    k: neighbour slots of a node.
    Nk: edge slots of a graph, N * k; edge (i, a) stands at index i * k + a.
    R: restarts.
    U: random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.assignment import assign
from lvmmed.matching.checks import check_permutation, check_shapes, check_values
from lvmmed.matching.graph import Problem, at_least_single, edges_present
from lvmmed.matching.node_order import in_canonical_order
from lvmmed.matching.search_choice import search_labels
from lvmmed.matching.starts import force_padding, soft_starts
from lvmmed.matching.terms import build_terms, present_edge_affinity
from lvmmed.types import InputError
from lvmmed.uploads import upload

DEFAULT_RESTARTS, LEAST_ITERATIONS, PAIRS_PER_ITERATION = 32, 60, 5
"""Default effort; a pair is a node and a label. With noise up to 0.2 the mean gap to a long run is
then below 0.1 % up to 16 nodes and below 1 % at 32, whatever the signal
(`benchmarks/solver_cpu.py`)."""

USUAL_AFFINITY = (1e-3, 1e3)
"""Range in which the largest affinity of a graph leaves them as they are; else the search scales
them, as its thresholds are absolute numbers."""


@dataclass(frozen=True)
class Matching:
    """The best matching found, one a graph.

    Attributes:
        permutation: node of view t that each node of view s is matched with; a padded node has
            itself.
        objective: total affinity of the matching, in the units of the affinities.
    """

    permutation: Int64[Tensor, "B N"]
    objective: Float[Tensor, "B"]


@torch.no_grad()
def solve(  # noqa: PLR0913 -- a problem of five tensors, two effort knobs and two switches
    vertex_affinity: Float[Tensor, "B N N"],
    edge_affinity: Float[Tensor, "B Nk Nk"],
    neighbors_s: Int64[Tensor, "B N k"],
    neighbors_t: Int64[Tensor, "B N k"],
    *,
    mask: Bool[Tensor, "B N"] | None = None,
    restarts: int | None = None,
    iterations: int | None = None,
    generator: torch.Generator | None = None,
    check: bool | None = None,
) -> Matching:
    """Find matchings of (nearly) the largest total affinity.

    Maximises, over permutations p of each graph, the sum over nodes i of vertex_affinity[i, p(i)]
    plus the sum over pairs of edges, (i, a) of view s and (c, b) of view t, of
    edge_affinity[(i, a), (c, b)] where p(i) = c and p(neighbors_s[i, a]) = neighbors_t[c, b].

    Every graph of a batch is searched with the same random numbers, so the result for a graph
    depends neither on its place nor on its companions (but for the length of the longest): solving
    a batch equals solving its graphs one by one with generators in the same state. Nor do the names
    of the nodes matter: before the search the nodes of both views are sorted by their affinities,
    so a relabelled graph is the same search under other names. Nodes that this cannot tell apart
    (equal sums of affinities, such as collapsed features have) keep their order. A graph that is
    padded to the length of a longer companion meets other random numbers; where the search misses
    the best matching it may then find a better or worse one.

    Half precision is raised to single; single and double are kept. On a GPU nothing waits for the
    device (with k > 0, unless `check` is set) and all shapes are fixed, so the call can be captured
    as a CUDA graph. With LVMMED_TRITON=1 the first call for a size does wait, see `search_choice`.

    Without any edge the problem is a linear assignment and is solved exactly on the processor: with
    no neighbour slots (k = 0) always, which makes a GPU wait; with empty ones on the CPU only, as
    they would have to be looked at. Among equal matchings none is favoured, the identity least.

    Args:
        vertex_affinity: worth of matching node i of view s with node c of view t.
        edge_affinity: worth of preserving an edge; what stands at absent edges is ignored.
        neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
        neighbors_t: the same of view t.
        mask: True at real nodes; None when all are. Padded nodes map to themselves and pay nothing.
        restarts: searches in a graph, at least 1; None = 32. The defaults are for quality; training
            gets by with an eighth of the work.
        iterations: exchanges in a search, 0 or more; 0 only rounds the starts. None = 60, or N * N
            / 5 where that is more: from 18 nodes on.
        generator: source of the jitter of starts and tenures. None = a fixed pattern, so that the
            result is a function of the affinities alone.
        check: look at the values (finite, neighbours in range, distinct and no loops). None = on
            the CPU only, because a GPU would have to be waited for.

    Returns:
        Permutations and their objectives, in the device and precision of the vertex affinity.

    Raises:
        InputError: shapes or types do not fit; an affinity is not finite; a node has N or more
            neighbours; a neighbour is out of range, repeated or the node itself; restarts or
            iterations are too small.

    Source:
        Paper equation 4 (with affinities = -costs). Robust tabu search after Taillard (1991).
    """
    check_effort(restarts, iterations)
    problem = searchable(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
    restarts, iterations = effort_for(vertex_affinity.shape[1], restarts, iterations)
    if check or (check is None and vertex_affinity.device.type == "cpu"):
        check_values(problem)
    if _has_no_edges(problem):
        return _best_of(problem, _assign_exactly(problem))
    vertex = problem.vertex_affinity
    uniform = draw_uniform(num_drawn(vertex.shape[1], restarts, iterations), vertex, generator)
    return search(problem, uniform, restarts=restarts, iterations=iterations)


def check_effort(restarts: int | None, iterations: int | None) -> None:
    """Refuse an effort that `solve` does not take."""
    if restarts is not None and restarts < 1:
        raise InputError(f"restarts: got {restarts}, need at least 1")
    if iterations is not None and iterations < 0:
        raise InputError(f"iterations: got {iterations}, need 0 or more")


def effort_for(
    num_nodes: int, restarts: int | None = None, iterations: int | None = None
) -> tuple[int, int]:
    """Give restarts and iterations, the default for so many nodes where None is given."""
    if restarts is None:
        restarts = DEFAULT_RESTARTS
    if iterations is None:
        iterations = max(LEAST_ITERATIONS, num_nodes**2 // PAIRS_PER_ITERATION)
    return restarts, iterations


def searchable(
    vertex_affinity: Float[Tensor, "B N N"],
    edge_affinity: Float[Tensor, "B Nk Nk"],
    neighbors_s: Int64[Tensor, "B N k"],
    neighbors_t: Int64[Tensor, "B N k"],
    mask: Bool[Tensor, "B N"] | None,
) -> Problem:
    """Check the shapes, cut the problem off from gradients and raise half precision to single."""
    check_shapes(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
    vertex = at_least_single(vertex_affinity.detach())
    return Problem(
        vertex_affinity=vertex,
        edge_affinity=at_least_single(edge_affinity.detach()).to(vertex.dtype),
        neighbors_s=neighbors_s,
        neighbors_t=neighbors_t,
        mask=mask,
    )


def num_drawn(num_nodes: int, restarts: int, iterations: int) -> int:
    """Count the random numbers of `search`."""
    return restarts * (num_nodes**2 + 2 * iterations)


@contextmanager
def _plain_algorithms() -> Iterator[None]:
    """Spare the search torch's deterministic algorithms, which sort what it scatters.

    No place is written twice, so the plain ones have one answer too.
    """
    was_on = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warns_only)


@torch.no_grad()
def search(
    problem: Problem, uniform: Float[Tensor, " U"], *, restarts: int, iterations: int
) -> Matching:
    """Search as `solve` does, with random numbers drawn before.

    Args:
        problem: in single or double precision, with at least one neighbour slot.
        uniform: as many numbers in 0..1 as `num_drawn` says.
        restarts: searches in a graph.
        iterations: exchanges in a search.

    Returns:
        Permutations and their objectives.
    """
    n = problem.vertex_affinity.shape[1]
    vertex = problem.vertex_affinity
    if problem.mask is not None:
        is_real = problem.mask.unsqueeze(1) & problem.mask.unsqueeze(2)
        vertex = vertex.masked_fill(~is_real, 0.0)
    jitter, tenures = uniform[: restarts * n * n], uniform[restarts * n * n :]
    noise = -torch.log(-torch.log(jitter.view(restarts, n, n)))
    tenures = tenures.view(iterations, restarts, 2)
    with torch.autocast(vertex.device.type, enabled=False), _plain_algorithms():
        ordered = in_canonical_order(problem, vertex, present_edge_affinity(problem))
        problem = ordered.problem
        factor = _factor_to_usual(problem.vertex_affinity, problem.edge_affinity)
        vertex = factor * problem.vertex_affinity
        scaled = replace(
            problem, vertex_affinity=vertex, edge_affinity=factor * problem.edge_affinity
        )
        terms = build_terms(scaled, is_clean=True)
        starts = soft_starts(terms, vertex, noise, mask=problem.mask)
        candidates = search_labels(terms, vertex, starts, tenures, mask=problem.mask)
        best = _best_of(problem, candidates)
    return Matching(ordered.named(best.permutation), best.objective)


def objective(
    vertex_affinity: Float[Tensor, "B N N"],
    edge_affinity: Float[Tensor, "B Nk Nk"],
    neighbors_s: Int64[Tensor, "B N k"],
    neighbors_t: Int64[Tensor, "B N k"],
    permutation: Int64[Tensor, "B N"],
    *,
    mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B"]:
    """Total affinity of matchings, as `solve` maximises it; differentiable in the affinities.

    Args:
        vertex_affinity: worth of matching node i of view s with node c of view t.
        edge_affinity: worth of preserving an edge; what stands at absent edges is ignored.
        neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
        neighbors_t: the same of view t.
        permutation: node of view t for each node of view s.
        mask: True at real nodes; None when all are.

    Returns:
        One sum a graph, in at least single precision.

    Raises:
        InputError: shapes or types do not fit; on the CPU, where that needs no wait, also where
            `permutation` holds no permutation.
    """
    check_shapes(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
    check_permutation(permutation, vertex_affinity)
    vertex = at_least_single(vertex_affinity)
    problem = Problem(
        vertex_affinity=vertex,
        edge_affinity=at_least_single(edge_affinity).to(vertex.dtype),
        neighbors_s=neighbors_s,
        neighbors_t=neighbors_t,
        mask=mask,
    )
    return objectives(problem, permutation.unsqueeze(1)).squeeze(1)


def objectives(problem: Problem, permutations: Int64[Tensor, "B R N"]) -> Float[Tensor, "B R"]:
    """Total affinity of several matchings of each graph; costs N k^2 a matching."""
    num_graphs, num_searches, n = permutations.shape
    k = problem.neighbors_s.shape[2]
    vertex = problem.vertex_affinity.unsqueeze(1).expand(-1, num_searches, -1, -1)
    vertex = torch.gather(vertex, 3, permutations.unsqueeze(3)).squeeze(3)
    if problem.mask is not None:
        vertex = vertex.masked_fill(~problem.mask.unsqueeze(1), 0.0)
    is_kept = preserved_edges(problem, permutations)  # [B, R, N, k, k]
    edge = problem.edge_affinity.reshape(num_graphs, 1, n, k, n, k)
    edge = edge.expand(-1, num_searches, -1, -1, -1, -1)
    at = permutations.view(num_graphs, num_searches, n, 1, 1, 1).expand(-1, -1, -1, k, -1, k)
    paid = torch.gather(edge, 4, at).squeeze(4)
    return vertex.sum(2) + torch.where(is_kept, paid, 0.0).sum((2, 3, 4))


def preserved_edges(
    problem: Problem, permutations: Int64[Tensor, "B R N"]
) -> Bool[Tensor, "B R N k k"]:
    """Tell, for edge (i, a), whether it is mapped onto edge (p(i), b) of view t."""
    num_graphs, num_searches, n = permutations.shape
    k = problem.neighbors_s.shape[2]
    present_s = edges_present(problem.neighbors_s, problem.mask)
    present_t = edges_present(problem.neighbors_t, problem.mask)
    # -1 at absent edges of s and -2 at those of t never meet
    heads_s = problem.neighbors_s.clamp_min(0).reshape(num_graphs, 1, n * k)
    heads_s = torch.gather(permutations, 2, heads_s.expand(-1, num_searches, -1))
    heads_s = heads_s.view(num_graphs, num_searches, n, k)
    heads_s = heads_s.masked_fill(~present_s.unsqueeze(1), -1)
    heads_t = problem.neighbors_t.masked_fill(~present_t, -2).unsqueeze(1)
    at = permutations.unsqueeze(3).expand(-1, -1, -1, k)
    heads_t = torch.gather(heads_t.expand(-1, num_searches, -1, -1), 2, at)
    return heads_s.unsqueeze(4) == heads_t.unsqueeze(3)


def draw_uniform(
    count: int, like: Float[Tensor, "..."], generator: torch.Generator | None
) -> Float[Tensor, " count"]:
    """Draw numbers inside 0..1 on the device of `like`; None gives a fixed, well-mixed pattern."""
    if generator is None:
        # multiply-xorshift hash of the index: needs no state and no transfer to the device
        bits = torch.arange(1, count + 1, device=like.device) * 2654435761 % 2**31
        for factor in (2246822519, 3266489917):
            bits = (bits ^ (bits >> 15)) * factor % 2**31
        uniform = (bits ^ (bits >> 13)).to(torch.float64) / 2**31
    else:
        uniform = torch.rand(count, generator=generator, device=generator.device)
        uniform = upload(uniform, like.device)
    return uniform.to(like.dtype).clamp(1e-6, 1 - 1e-6)


def _has_no_edges(problem: Problem) -> bool:
    if problem.neighbors_s.shape[2] == 0:
        return True
    if problem.vertex_affinity.device.type != "cpu":
        return False
    return not bool((problem.neighbors_s >= 0).any() and (problem.neighbors_t >= 0).any())


def _assign_exactly(problem: Problem) -> Int64[Tensor, "B 1 N"]:
    vertex = problem.vertex_affinity
    if problem.mask is not None:
        vertex = _factor_to_usual(vertex) * vertex
    scores = force_padding(vertex.unsqueeze(1), problem.mask).squeeze(1)
    # labels in a mixed order: among equals the identity must not be favoured
    order = draw_uniform(scores.shape[1], scores, None).argsort()
    return order[assign(scores[:, :, order])].unsqueeze(1)


def _factor_to_usual(*affinities: Float[Tensor, "B _ _"]) -> Float[Tensor, "B 1 1"]:
    """Give the power of two that takes each graph's largest affinity to 0.5..1 if it is unusual."""
    sizes = [values.detach().flatten(1).abs().nan_to_num(nan=0.0) for values in affinities]
    largest = torch.stack([size.amax(1) for size in sizes]).amax(0)
    least, most = USUAL_AFFINITY
    is_usual = ((largest >= least) & (largest <= most)) | (largest == 0)
    exponent = torch.frexp(largest).exponent.clamp(-100, 100)
    factor = torch.ldexp(torch.ones_like(largest), -exponent)
    return torch.where(is_usual, 1.0, factor).view(-1, 1, 1)


def _best_of(problem: Problem, candidates: Int64[Tensor, "B R N"]) -> Matching:
    values = objectives(problem, candidates)
    at = values.argmax(1, keepdim=True)
    chosen = torch.gather(candidates, 1, at.unsqueeze(2).expand(-1, -1, candidates.shape[2]))
    return Matching(chosen.squeeze(1), torch.gather(values, 1, at).squeeze(1))
