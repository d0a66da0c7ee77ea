"""Matchings without noise and margin: what the figures of graph matching are measured on.

Letters used in shapes:
    G: graphs.
    N: nodes of a graph.
    K: neighbours of a node.
    E: edges of a graph, N * K.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.bound import bound
from lvmmed.matching.graph import Problem, edges_present
from lvmmed.matching.solver import objective, solve
from lvmmed.matching.terms import present_edge_affinity

GAP_NODES = 64
"""Nodes in all whose matchings are bounded: the first 4 graphs of 16. The time grows with N^3 k."""
GAP_ITERATIONS = 30
"""Rounds of the bound; with 4 graphs of 16 they take 13 ms on one core."""
SHORTFALL_EFFORT = (8, 100)
"""Restarts and iterations of the search that matchings of larger graphs are compared with."""
GAP_ROUNDING = 1e-9
"""A matching this close to its bound, relative to the affinities, is optimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchedGraphs:
    """Noise-free matchings of a batch, on the CPU.

    Attributes:
        permutation: node of the second view that each node of the first is matched to.
        permutation_first_order: the same without edge terms.
        neighbors_s: graph of the first view, -1 where there is no edge.
        neighbors_t: graph of the second view.
        mask: which nodes are real; a last graph may be short.
        images: place in the batch of every node; -1 where a graph has none.
    """

    permutation: Int64[Tensor, "G N"]
    permutation_first_order: Int64[Tensor, "G N"]
    neighbors_s: Int64[Tensor, "G N K"]
    neighbors_t: Int64[Tensor, "G N K"]
    mask: Bool[Tensor, "G N"]
    images: Int64[Tensor, "G N"]

    @property
    def accuracy(self) -> float:
        """Share of real nodes that are matched with themselves."""
        return _share_right(self.permutation, self.mask)

    @property
    def accuracy_first_order(self) -> float:
        """The same without edge terms."""
        return _share_right(self.permutation_first_order, self.mask)


@torch.no_grad()
def solve_noise_free(
    problem: Problem,
    *,
    restarts: int,
    iterations: int,
    order: Int64[Tensor, " images"] | None = None,
) -> MatchedGraphs:
    """Solve a batch of problems with and without their edges, without favour to the truth.

    The true matching is the identity, which a solver may well prefer among equals: encoders that
    have collapsed would seem perfect. So the nodes of the second view are shuffled before solving
    and put back after, by a fixed shuffle: equal affinities give chance.

    Args:
        problem: affinities may hold nan, which counts as 0.
        restarts: of the solver.
        iterations: of the solver.
        order: place in the batch of each image, graph by graph; None = as they stand there.

    Returns:
        Matchings on the CPU.
    """
    shuffle = _fixed_shuffle(problem)
    shuffled = _shuffle_second_view(problem, shuffle)
    problems = [shuffled]
    if shuffled.neighbors_s.shape[2]:
        problems.append(Problem.of_nodes(shuffled.vertex_affinity, mask=shuffled.mask))
    permutations = [
        shuffle.gather(1, _solve(one, restarts=restarts, iterations=iterations)).cpu()
        for one in problems
    ]
    mask = torch.ones(shuffle.shape, dtype=torch.bool)
    if problem.mask is not None:
        mask = problem.mask.cpu()
    images = torch.full(mask.shape, -1)
    num_nodes = int(mask.sum())
    images[mask] = torch.arange(num_nodes) if order is None else order[:num_nodes].cpu()
    return MatchedGraphs(
        permutation=permutations[0],
        permutation_first_order=permutations[-1],
        neighbors_s=problem.neighbors_s.cpu(),
        neighbors_t=problem.neighbors_t.cpu(),
        mask=mask,
        images=images,
    )


def affinity_std(problem: Problem) -> float:
    """Standard deviation of the node affinities over pairs of real nodes."""
    affinity = problem.vertex_affinity.detach()
    if problem.mask is None:
        return float(affinity.std())
    pairs = problem.mask.unsqueeze(2) & problem.mask.unsqueeze(1)
    return float(affinity[pairs].std())


def edge_affinity_std(problem: Problem) -> float | None:
    """Standard deviation of the edge affinities over pairs of edges; None without any."""
    of_s, of_t = (
        edges_present(neighbors, problem.mask).flatten(1)
        for neighbors in (problem.neighbors_s, problem.neighbors_t)
    )
    found = problem.edge_affinity.detach()[of_s.unsqueeze(2) & of_t.unsqueeze(1)]
    return float(found.std()) if len(found) > 1 else None


def affinity_std_of_graphs(problem: Problem) -> Float[Tensor, "G"]:
    """Standard deviation of the node affinities of each graph, over pairs of real nodes."""
    affinity = problem.vertex_affinity.detach()
    if problem.mask is None:
        return affinity.flatten(1).std(1, correction=0)
    pairs = (problem.mask.unsqueeze(2) & problem.mask.unsqueeze(1)).to(affinity.dtype)
    count = pairs.sum((1, 2)).clamp_min(1)
    mean = (affinity * pairs).sum((1, 2)) / count
    deviation = (affinity - mean.view(-1, 1, 1)).square() * pairs
    return (deviation.sum((1, 2)) / count).sqrt()


@torch.no_grad()
def sampled_solver_gap(
    problem: Problem, permutation: Int64[Tensor, "G N"], *, iterations: int = GAP_ITERATIONS
) -> float | None:
    """Mean of `solver_gap` over the first graphs, as many as hold `GAP_NODES` nodes together.

    Args:
        problem: affinities may hold nan, which counts as 0.
        permutation: matchings to judge.
        iterations: rounds of the bound; more give a smaller gap in more time.

    Returns:
        The mean gap, or None for graphs of more than `GAP_NODES` nodes.
    """
    num_graphs = GAP_NODES // problem.vertex_affinity.shape[1]
    if num_graphs == 0:
        return None
    some = _first_graphs(problem, num_graphs)
    gaps = solver_gap(some, permutation[:num_graphs].cpu(), iterations=iterations)
    return float(gaps.mean())


@torch.no_grad()
def sampled_solver_shortfall(
    problem: Problem,
    permutation: Int64[Tensor, "G N"],
    *,
    effort: tuple[int, int] = SHORTFALL_EFFORT,
) -> float:
    """How far the first graph's matching lies below that of a longer search.

    Graphs of more than `GAP_NODES` nodes are too large for the bound of `sampled_solver_gap`, which
    limits the gap from above; this limits it from below.

    Args:
        problem: affinities may hold nan, which counts as 0.
        permutation: matchings to judge.
        effort: restarts and iterations of the longer search.

    Returns:
        The share of the better matching's lead over random ones that is missed; 0 if none is.
    """
    one = _first_graphs(problem, 1)
    found = _objective(one, permutation[:1].cpu())
    longer = _objective(one, _solve(one, restarts=effort[0], iterations=effort[1]))
    lead = longer - mean_objective(one)
    missed = (longer - found).clamp_min(0)
    return float(torch.where(lead > 0, missed / lead.clamp_min(1e-12), 0.0))


def _first_graphs(problem: Problem, num_graphs: int) -> Problem:
    """Some graphs on the CPU, in double precision.

    In single precision a sum of 500 affinities is off by more than a tight bound.
    """
    return Problem(
        vertex_affinity=torch.nan_to_num(problem.vertex_affinity[:num_graphs]).double().cpu(),
        edge_affinity=torch.nan_to_num(problem.edge_affinity[:num_graphs]).double().cpu(),
        neighbors_s=problem.neighbors_s[:num_graphs].cpu(),
        neighbors_t=problem.neighbors_t[:num_graphs].cpu(),
        mask=None if problem.mask is None else problem.mask[:num_graphs].cpu(),
    )


def solver_gap(
    problem: Problem, permutation: Int64[Tensor, "G N"], *, iterations: int
) -> Float[Tensor, "G"]:
    """How far matchings may lie below the best ones, as a share of the lead over random ones.

    (bound - objective) / (bound - mean objective of all permutations). The bound is never below
    the best objective, so the gap is an upper limit of the true one: 0 proves that no matching is
    better; 0.1 says that the matching found has at least nine tenths of the lead over a random
    matching that any matching can have. A loose bound, as untrained encoders have, gives a large
    gap whatever the solver does.

    Args:
        problem: finite affinities, in double precision.
        permutation: matchings to judge.
        iterations: rounds of the bound.

    Returns:
        0 for a proved optimum, 1 for a matching no better than the mean of all.
    """
    parts = (
        problem.vertex_affinity,
        problem.edge_affinity,
        problem.neighbors_s,
        problem.neighbors_t,
    )
    upper = bound(*parts, mask=problem.mask, iterations=iterations)
    found = _objective(problem, permutation)
    short = (upper - found).clamp_min(0)
    scale = problem.vertex_affinity.abs().amax((1, 2)) + upper.abs()
    lead = upper - mean_objective(problem)
    is_optimal = (short <= GAP_ROUNDING * scale) | (lead <= 0)
    return torch.where(is_optimal, 0.0, short / lead.masked_fill(is_optimal, 1.0))


def _objective(problem: Problem, permutation: Int64[Tensor, "G N"]) -> Float[Tensor, "G"]:
    return objective(
        problem.vertex_affinity,
        problem.edge_affinity,
        problem.neighbors_s,
        problem.neighbors_t,
        permutation,
        mask=problem.mask,
    )


def mean_objective(problem: Problem) -> Float[Tensor, "G"]:
    """Mean objective of all permutations of the real nodes.

    Of n! permutations a share of 1 / n sends node i to a, and 1 / (n (n - 1)) sends edge (i, j) to
    edge (a, b), so it is a sum over all pairs of nodes and of edges.
    """
    num_graphs, size = problem.vertex_affinity.shape[:2]
    mask = problem.mask
    if mask is None:
        mask = problem.neighbors_s.new_ones(num_graphs, size, dtype=torch.bool)
    num_nodes = mask.sum(1)
    pairs = mask.unsqueeze(2) & mask.unsqueeze(1)
    of_nodes = problem.vertex_affinity.masked_fill(~pairs, 0.0).sum((1, 2)) / num_nodes
    of_edges = present_edge_affinity(problem).sum((1, 2))
    return of_nodes + of_edges / (num_nodes * (num_nodes - 1)).clamp_min(1)


def _solve(problem: Problem, *, restarts: int, iterations: int) -> Int64[Tensor, "G N"]:
    return solve(
        torch.nan_to_num(problem.vertex_affinity),
        torch.nan_to_num(problem.edge_affinity),
        problem.neighbors_s,
        problem.neighbors_t,
        mask=problem.mask,
        restarts=restarts,
        iterations=iterations,
    ).permutation


def _fixed_shuffle(problem: Problem) -> Int64[Tensor, "G N"]:
    """Old index of the node at each new place; padded nodes stay where they are, at the end."""
    shape = problem.vertex_affinity.shape[:2]
    keys = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if problem.mask is not None:
        keys = keys.masked_fill(~problem.mask.cpu(), 2.0)
    return keys.argsort(dim=1, stable=True).to(problem.vertex_affinity.device)


def _shuffle_second_view(problem: Problem, order: Int64[Tensor, "G N"]) -> Problem:
    num_graphs, num_nodes, k = problem.neighbors_t.shape
    new_place = order.argsort(dim=1)
    rows = order.unsqueeze(2).expand(-1, -1, k)
    heads = problem.neighbors_t.gather(1, rows)
    named = new_place.unsqueeze(1).expand(-1, num_nodes, -1).gather(2, heads.clamp(min=0))
    # edge (i, a) stands at index i * K + a
    edges = (order.unsqueeze(2) * k + torch.arange(k, device=order.device)).flatten(1)
    return replace(
        problem,
        vertex_affinity=_take_columns(problem.vertex_affinity, order),
        edge_affinity=_take_columns(problem.edge_affinity, edges),
        neighbors_t=torch.where(heads < 0, heads, named).view(num_graphs, num_nodes, k),
    )


def _take_columns(
    affinity: Float[Tensor, "G M M"], columns: Int64[Tensor, "G M"]
) -> Float[Tensor, "G M M"]:
    return affinity.gather(2, columns.unsqueeze(1).expand_as(affinity))


def _share_right(permutation: Int64[Tensor, "G N"], mask: Bool[Tensor, "G N"]) -> float:
    is_right = permutation == torch.arange(permutation.shape[1])
    return float(is_right[mask].float().mean())
