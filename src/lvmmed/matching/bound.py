"""Certified upper bound on the objective of a matching problem, by dual ascent.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node; Nk: edge slots.
    P: pairs of joined nodes of view s, at most min(Nk, N * (N - 1) / 2); short graphs are padded.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.checks import check_shapes, check_values
from lvmmed.matching.graph import Problem, edges_present
from lvmmed.matching.starts import force_padding
from lvmmed.matching.terms import present_edge_affinity
from lvmmed.types import InputError

SMOOTHING = (0.05, 0.002)
"""First and last temperature of the assignment prices, in units of the largest affinity."""

PRICE_SWEEPS = 3
"""Price updates an iteration."""

NEVER = -1e9
"""Affinity of two nodes sharing a label."""


@dataclass(frozen=True)
class _Pairs:
    """Edges i -> j and j -> i of view s merged into pairs.

    Attributes:
        affinity: what labels c of `first` and d of `second` pay together.
        first: lower node of each pair.
        second: higher node of each pair.
        weight: 1 for a pair, 0 for padding.
    """

    affinity: Float[Tensor, "B P N N"]
    first: Int64[Tensor, "B P"]
    second: Int64[Tensor, "B P"]
    weight: Float[Tensor, "B P"]


@torch.no_grad()
def bound(
    vertex_affinity: Float[Tensor, "B N N"],
    edge_affinity: Float[Tensor, "B Nk Nk"],
    neighbors_s: Int64[Tensor, "B N k"],
    neighbors_t: Int64[Tensor, "B N k"],
    *,
    mask: Bool[Tensor, "B N"] | None = None,
    iterations: int = 100,
) -> Float[Tensor, "B"]:
    """Bound the largest objective of each graph from above.

    The problem splits into one assignment problem and one problem of two nodes for every pair of
    joined nodes. Messages move affinity between them without changing the objective of any
    permutation; the sum of the parts' maxima is therefore never below the best objective, whatever
    the messages, and the lowest sum met is returned. It is computed in double precision.

    The bound is tight (equal to the optimum) when embeddings are well aligned, and loose, by tens
    of percent, for an untrained encoder: a small gap proves optimality, a large one proves nothing.

    Args:
        vertex_affinity: worth of matching node i of view s with node c of view t.
        edge_affinity: worth of preserving an edge; absent edges are ignored.
        neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
        neighbors_t: the same of view t.
        mask: True at real nodes; None when all are.
        iterations: rounds of messages, at least 1; more give a tighter bound.

    Returns:
        Upper bounds in double precision.

    Raises:
        InputError: iterations is below 1, or `solve` would refuse the problem.
    """
    check_shapes(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
    if iterations < 1:
        raise InputError(f"iterations: got {iterations}, need at least 1")
    problem = Problem(
        vertex_affinity=vertex_affinity.detach().double(),
        edge_affinity=edge_affinity.detach().double(),
        neighbors_s=neighbors_s,
        neighbors_t=neighbors_t,
        mask=mask,
    )
    check_values(problem)
    vertex = problem.vertex_affinity
    if mask is not None:
        vertex = vertex.masked_fill(~(mask.unsqueeze(1) & mask.unsqueeze(2)), 0.0)
        padding = force_padding(torch.zeros_like(vertex).unsqueeze(1), mask).squeeze(1)
        vertex = vertex + padding.clamp_max(0.0)  # forbids, and pays nothing for i -> i
    with torch.autocast(vertex.device.type, enabled=False):
        return _ascend(vertex, _merge_pairs(problem), iterations)


def _ascend(vertex: Float[Tensor, "B N N"], pairs: _Pairs, iterations: int) -> Float[Tensor, "B"]:
    num_graphs, num_pairs, n, _ = pairs.affinity.shape
    scale = _largest_affinity(vertex, pairs)
    degree = _add_to_nodes(pairs, pairs.weight.unsqueeze(2), pairs.weight.unsqueeze(2), n)
    degree = degree.clamp_min(1)  # [B, N, 1]
    # what the pairs have handed to the vertices, per end and label
    to_first = vertex.new_zeros(num_graphs, num_pairs, n)
    to_second = torch.zeros_like(to_first)
    prices = vertex.new_zeros(num_graphs, 1, n)
    best = vertex.new_full((num_graphs,), torch.inf)
    first = pairs.first.unsqueeze(2).expand(-1, -1, n)
    second = pairs.second.unsqueeze(2).expand(-1, -1, n)
    for step in range(iterations):
        fall = (SMOOTHING[1] / SMOOTHING[0]) ** (step / max(1, iterations - 1))
        unary = vertex + _add_to_nodes(pairs, to_first, to_second, n)
        prices = _assignment_prices(unary, prices, scale * SMOOTHING[0] * fall)
        priced = unary - prices
        rest = pairs.affinity - to_first.unsqueeze(3) - to_second.unsqueeze(2)
        of_pairs = (rest.amax((2, 3)) * pairs.weight).sum(1)
        of_assignment = prices.sum((1, 2)) + priced.amax(2).sum(1)
        best = torch.minimum(best, of_pairs + of_assignment)
        share = priced.clamp_min(NEVER) / degree
        to_first = to_first - torch.gather(share, 1, first)
        to_second = to_second - torch.gather(share, 1, second)
        rest = pairs.affinity - to_first.unsqueeze(3) - to_second.unsqueeze(2)
        to_first = to_first + 0.5 * rest.amax(3)
        to_second = to_second + 0.5 * rest.amax(2)
    # rounding of some 1e3 additions must not turn the bound into a lie
    return best + 1e-12 * n * (1 + num_pairs) * scale.flatten()


def _assignment_prices(
    unary: Float[Tensor, "B N N"],
    prices: Float[Tensor, "B 1 N"],
    temperature: Float[Tensor, "B 1 1"],
) -> Float[Tensor, "B 1 N"]:
    """Move the labels' prices towards balance (smoothed dual of the assignment problem)."""
    for _ in range(PRICE_SWEEPS):
        rows = temperature * torch.logsumexp((unary - prices) / temperature, 2, keepdim=True)
        demand = torch.logsumexp((unary - rows - prices) / temperature, 1, keepdim=True)
        prices = prices + temperature * demand
    return prices


def _merge_pairs(problem: Problem) -> _Pairs:
    num_graphs, n, k = problem.neighbors_s.shape
    present_s = edges_present(problem.neighbors_s, problem.mask).flatten(1)  # [B, Nk]
    tails = torch.arange(n, device=present_s.device).repeat_interleave(k)
    tails = tails.expand(num_graphs, -1)
    heads = problem.neighbors_s.clamp_min(0).flatten(1)
    low, high = torch.minimum(tails, heads), torch.maximum(tails, heads)
    num_pairs = max(1, min(n * k, n * (n - 1) // 2))
    # absent edges fall into key n * n, behind all others
    key = torch.where(present_s, low * n + high, n * n)
    is_joined = key.new_zeros(num_graphs, n * n + 1, dtype=torch.bool).scatter(1, key, True)
    is_joined[:, n * n] = False
    slot_of_key = (is_joined.cumsum(1) - 1).clamp_min(0)
    slot = torch.gather(slot_of_key, 1, key)
    affinity = _by_labels(problem)  # [B, Nk, N, N], 0 for absent edges
    is_rising = (tails < heads).view(num_graphs, n * k, 1, 1)
    affinity = torch.where(is_rising, affinity, affinity.transpose(2, 3))
    merged = affinity.new_zeros(num_graphs, num_pairs, n, n)
    merged.scatter_add_(1, slot.view(num_graphs, n * k, 1, 1).expand(-1, -1, n, n), affinity)
    own = torch.eye(n, dtype=torch.bool, device=merged.device)
    count = is_joined.sum(1, keepdim=True)
    order = torch.argsort((~is_joined[:, :-1]).to(torch.uint8), dim=1, stable=True)[:, :num_pairs]
    is_pair = torch.arange(num_pairs, device=merged.device) < count
    return _Pairs(
        affinity=merged.masked_fill(own, NEVER),
        first=torch.div(order, n, rounding_mode="floor"),
        second=order % n,
        weight=is_pair.to(merged.dtype),
    )


def _by_labels(problem: Problem) -> Float[Tensor, "B Nk N N"]:
    """Spread the edges of view t over the table of their (tail, head)."""
    num_graphs, n, k = problem.neighbors_t.shape
    tails = torch.arange(n, device=problem.neighbors_t.device).repeat_interleave(k)
    at = tails * n + problem.neighbors_t.clamp_min(0).flatten(1)  # [B, Nk]
    spread = problem.edge_affinity.new_zeros(num_graphs, n * k, n * n)
    at = at.unsqueeze(1).expand(-1, n * k, -1)
    return spread.scatter_add(2, at, present_edge_affinity(problem)).view(num_graphs, n * k, n, n)


def _add_to_nodes(
    pairs: _Pairs, to_first: Float[Tensor, "B P X"], to_second: Float[Tensor, "B P X"], n: int
) -> Float[Tensor, "B N X"]:
    width = to_first.shape[2]
    weight = pairs.weight.unsqueeze(2)
    total = to_first.new_zeros(to_first.shape[0], n, width)
    for ends, values in ((pairs.first, to_first), (pairs.second, to_second)):
        total = total.scatter_add(1, ends.unsqueeze(2).expand(-1, -1, width), values * weight)
    return total


def _largest_affinity(vertex: Float[Tensor, "B N N"], pairs: _Pairs) -> Float[Tensor, "B 1 1"]:
    allowed = vertex.masked_fill(vertex <= NEVER / 2, 0.0).abs().amax((1, 2))
    of_pairs = pairs.affinity.masked_fill(pairs.affinity <= NEVER / 2, 0.0).abs()
    if of_pairs.shape[1]:
        allowed = torch.maximum(allowed, of_pairs.amax((1, 2, 3)))
    return allowed.clamp_min(1e-6).view(-1, 1, 1)
