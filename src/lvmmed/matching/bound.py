"""Certified upper bound on the objective of a matching problem, by dual ascent.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node; Nk: edge slots.
    P: pairs of joined nodes of view s, at most min(Nk, N * (N - 1) / 2); short graphs are padded.
"""

from dataclasses import dataclass, replace

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

NUM_CASES = 4
"""Labels of a node that are looked into one by one when it is split; the rest share a bound."""


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


@dataclass(frozen=True)
class _Dual:
    """How affinity is shared out between vertices, pairs and labels.

    Attributes:
        to_first: what the pairs have handed to the labels of their first node.
        to_second: the same of their second node.
        prices: what a label costs whoever takes it.
        lowest: lowest bound met so far.
    """

    to_first: Float[Tensor, "B P N"]
    to_second: Float[Tensor, "B P N"]
    prices: Float[Tensor, "B 1 N"]
    lowest: Float[Tensor, "B"]


@torch.no_grad()
def bound(
    vertex_affinity: Float[Tensor, "B N N"],
    edge_affinity: Float[Tensor, "B Nk Nk"],
    neighbors_s: Int64[Tensor, "B N k"],
    neighbors_t: Int64[Tensor, "B N k"],
    *,
    mask: Bool[Tensor, "B N"] | None = None,
    iterations: int = 100,
    splits: int = 0,
) -> Float[Tensor, "B"]:
    """Bound the largest objective of each graph from above.

    The problem splits into one assignment problem and one problem of two nodes for every pair of
    joined nodes. Messages move affinity between them without changing the objective of any
    permutation; the sum of the parts' maxima is therefore never below the best objective, whatever
    the messages, and the lowest sum met is returned. It is computed in double precision.

    The bound is tight (equal to the optimum) when embeddings are well aligned, and loose, by tens
    of percent, for an untrained encoder: a small gap proves optimality, a large one proves nothing.

    No messages close the gap where half of one matching and half of another would pay more than
    any whole one. Splitting may: every permutation gives a node some label, so the largest of the
    bounds that have its label fixed bounds them all.

    Args:
        vertex_affinity: worth of matching node i of view s with node c of view t.
        edge_affinity: worth of preserving an edge; absent edges are ignored.
        neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
        neighbors_t: the same of view t.
        mask: True at real nodes; None when all are.
        iterations: rounds of messages, at least 1; more give a tighter bound.
        splits: how many of the least decided nodes are split, each by itself; the lowest bound
            counts. A split costs some four times as much as the rounds before it.

    Returns:
        Upper bounds in double precision.

    Raises:
        InputError: iterations is below 1, splits below 0, or `solve` would refuse the problem.
    """
    check_shapes(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
    if iterations < 1:
        raise InputError(f"iterations: got {iterations}, need at least 1")
    if splits < 0:
        raise InputError(f"splits: got {splits}, need 0 or more")
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
        pairs = _merge_pairs(problem)
        dual = _ascend(vertex, pairs, _even_dual(pairs), iterations)
        lowest = dual.lowest
        if splits and vertex.shape[1] > 1:
            lowest = _split(vertex, pairs, dual, iterations=iterations, splits=splits)
        # rounding of some 1e3 additions must not turn the bound into a lie
        num_terms = vertex.shape[1] * (1 + pairs.weight.shape[1])
        return lowest + 1e-12 * num_terms * _largest_affinity(vertex, pairs).flatten()


def _even_dual(pairs: _Pairs) -> _Dual:
    """Start with nothing handed over."""
    num_graphs, num_pairs, n, _ = pairs.affinity.shape
    nothing = pairs.affinity.new_zeros(num_graphs, num_pairs, n)
    return _Dual(
        to_first=nothing,
        to_second=nothing,
        prices=nothing.new_zeros(num_graphs, 1, n),
        lowest=nothing.new_full((num_graphs,), torch.inf),
    )


def _ascend(vertex: Float[Tensor, "B N N"], pairs: _Pairs, dual: _Dual, iterations: int) -> _Dual:
    n = vertex.shape[1]
    scale = _largest_affinity(vertex, pairs)
    degree = _add_to_nodes(pairs, pairs.weight.unsqueeze(2), pairs.weight.unsqueeze(2), n)
    degree = degree.clamp_min(1)  # [B, N, 1]
    to_first, to_second, prices, lowest = (
        dual.to_first,
        dual.to_second,
        dual.prices,
        dual.lowest,
    )
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
        lowest = torch.minimum(lowest, of_pairs + of_assignment)
        share = priced.clamp_min(NEVER) / degree
        to_first = to_first - torch.gather(share, 1, first)
        to_second = to_second - torch.gather(share, 1, second)
        rest = pairs.affinity - to_first.unsqueeze(3) - to_second.unsqueeze(2)
        to_first = to_first + 0.5 * rest.amax(3)
        to_second = to_second + 0.5 * rest.amax(2)
    return _Dual(to_first, to_second, prices, lowest)


def _split(
    vertex: Float[Tensor, "B N N"], pairs: _Pairs, dual: _Dual, *, iterations: int, splits: int
) -> Float[Tensor, "B"]:
    """Bound the cases of the nodes whose second-best label comes closest to the best."""
    forced = torch.minimum(_forced_bounds(vertex, pairs, dual), dual.lowest.view(-1, 1, 1))
    rivals = forced.topk(2, dim=2).values[..., 1]
    nodes = rivals.topk(min(splits, vertex.shape[1]), dim=1).indices
    lowest = dual.lowest
    for node in nodes.unbind(1):
        of_node = forced[torch.arange(node.shape[0], device=node.device), node]
        values, labels = of_node.sort(1, descending=True)
        worst = torch.full_like(lowest, -torch.inf)
        if values.shape[1] > NUM_CASES:
            worst = values[:, NUM_CASES]
        for case in range(min(NUM_CASES, values.shape[1])):
            fixed = _fix(vertex, node, labels[:, case])
            start = replace(dual, lowest=values[:, case])
            worst = torch.maximum(worst, _ascend(fixed, pairs, start, iterations).lowest)
        lowest = torch.minimum(lowest, worst)
    return lowest


def _forced_bounds(
    vertex: Float[Tensor, "B N N"], pairs: _Pairs, dual: _Dual
) -> Float[Tensor, "B N N"]:
    """Bound, for every node and label, the permutations that give the node that label.

    The parts' maxima with that assignment fixed: the node's other labels drop out of its row of
    the assignment problem and of all its pairs.
    """
    n = vertex.shape[1]
    priced = vertex + _add_to_nodes(pairs, dual.to_first, dual.to_second, n) - dual.prices
    rest = pairs.affinity - dual.to_first.unsqueeze(3) - dual.to_second.unsqueeze(2)
    best = rest.amax((2, 3))
    total = (best * pairs.weight).sum(1) + dual.prices.sum((1, 2)) + priced.amax(2).sum(1)
    best = best.unsqueeze(2)
    lost = _add_to_nodes(pairs, best - rest.amax(3), best - rest.amax(2), n)
    lost = lost + priced.amax(2, keepdim=True) - priced
    return total.view(-1, 1, 1) - lost


def _fix(
    vertex: Float[Tensor, "B N N"], node: Int64[Tensor, "B"], label: Int64[Tensor, "B"]
) -> Float[Tensor, "B N N"]:
    """Forbid a node's other labels, and the label to all other nodes."""
    index = torch.arange(vertex.shape[1], device=vertex.device)
    is_row = (index == node.unsqueeze(1)).unsqueeze(2)
    is_column = (index == label.unsqueeze(1)).unsqueeze(1)
    return vertex.masked_fill(is_row ^ is_column, NEVER)


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
