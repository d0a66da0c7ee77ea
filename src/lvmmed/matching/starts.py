"""Where the search begins: roundings of annealed soft assignments.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; R: searches in a graph; NN: N * N.
    G: any leading dimensions.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.terms import PairTerms

NUM_ROUNDS = 8
"""Rounds of annealing. Twice as many give no better matchings after 60 exchanges at N = 16."""

JITTER = (1.5, 5.0)
"""Range of the noise of the last search, in units of the gradient's deviation; the first has 0."""

CROWDED = 48
"""Searches times this, over N * N, is what the noise grows by where it is more than 1: many starts
in a small graph meet in the same places. At N = 16 the gap of 32 searches of 60 exchanges falls to
a half or less, at N = 32 and with few searches (4 of 16 exchanges) more noise would widen it."""

LAST_TEMPERATURE = 0.02
"""Temperature of the last round in units of the gradient's deviation; the first has 1."""

FORBIDDEN = 1e9
"""Size of the score that forbids (negative) or forces (positive) an assignment."""

GREEDY_ROUNDS = 3
"""Rounds of parallel greedy matching beyond log2(N); what is left then is paired by index."""


def soft_starts(
    terms: PairTerms,
    vertex_affinity: Float[Tensor, "B N N"],
    noise: Float[Tensor, "R N N"],
    *,
    mask: Bool[Tensor, "B N"] | None,
) -> Int64[Tensor, "B R N"]:
    """Follow the gradient from the even assignment while a temperature falls, then round.

    A round moves the assignment X half way to a (nearly) doubly stochastic exp((gradient(X) -
    prices) / temperature). The prices of the labels are kept in units of affinity from round to
    round, which is why one sweep of normalisation a round suffices.

    Args:
        terms: the second-order terms.
        vertex_affinity: the first-order terms.
        noise: standard Gumbel noise, the same for all graphs; the searches get a rising share of
            it, which fades out over the rounds.
        mask: True at real nodes; None when all are.

    Returns:
        One permutation for each search.
    """
    num_graphs, n, _ = vertex_affinity.shape
    num_searches = noise.shape[0]
    vertex = vertex_affinity.unsqueeze(1)
    soft = _even_assignment(vertex_affinity, mask).unsqueeze(1)
    gradient = vertex + terms.soft(soft.flatten(2)).view(num_graphs, 1, n, n)
    spread = masked_deviation(gradient, mask)
    last = jitter_of_last(n, num_searches)
    amplitude = torch.linspace(0, last, num_searches, device=noise.device, dtype=noise.dtype)
    shift = noise * amplitude.view(1, -1, 1, 1) * spread
    soft = soft.expand(-1, num_searches, -1, -1)
    prices = vertex_affinity.new_zeros(num_graphs, num_searches, 1, n)
    weights = soft
    for step in range(NUM_ROUNDS):
        if step:
            gradient = vertex + terms.soft(soft.flatten(2)).view(num_graphs, num_searches, n, n)
        temperature = spread * LAST_TEMPERATURE ** (step / (NUM_ROUNDS - 1))
        scores = torch.add(gradient, shift, alpha=1 - step / NUM_ROUNDS)
        scores = force_padding(scores, mask) - prices
        weights, surplus = _balanced_weights(scores / temperature)
        prices = prices + temperature * surplus
        soft = torch.lerp(soft, weights, 0.5)
    return greedy_in_order(weights, noise[:, 0].argsort(-1))


def jitter_of_last(num_nodes: int, num_searches: int) -> float:
    """Give the noise of the last search in units of the gradient's deviation."""
    least, most = JITTER
    return min(most, least * max(1.0, CROWDED * num_searches / num_nodes**2))


def greedy_in_order(
    scores: Float[Tensor, "B R N N"], order: Int64[Tensor, "R N"]
) -> Int64[Tensor, "B R N"]:
    """Round scores to permutations; of equal scores the label earliest in `order` wins.

    Rounding by index would favour the identity, which is the true matching in training: features
    that have collapsed to a point would be matched without a mistake.
    """
    num_graphs, num_searches, n, _ = scores.shape
    columns = order.view(1, num_searches, 1, n).expand(num_graphs, -1, n, -1)
    labels = greedy_permutations(torch.gather(scores, 3, columns))
    return torch.gather(order.expand(num_graphs, -1, -1), 2, labels)


def greedy_permutations(scores: Float[Tensor, "*G N N"]) -> Int64[Tensor, "*G N"]:
    """Round scores to permutations: the best assignment first, then the best of what is left.

    Every round fixes all entries that are the largest of both their row and their column, which
    gives the same result as taking them one after another. The number of rounds is fixed (no look
    at the values); after it, the n-th free row takes the n-th free column.
    """
    n = scores.shape[-1]
    columns = torch.arange(n, device=scores.device)
    labels = torch.full(scores.shape[:-1], n, device=scores.device, dtype=torch.int64)
    for _ in range(min(n, GREEDY_ROUNDS + n.bit_length())):
        row_best = scores.max(-1).indices
        column_best = scores.max(-2).indices
        is_hit = (torch.gather(column_best, -1, row_best) == columns) & (labels == n)
        labels = torch.where(is_hit, row_best, labels)
        closed = _taken_columns(labels).unsqueeze(-2) | (labels < n).unsqueeze(-1)
        scores = scores.masked_fill(closed, -torch.inf)
    is_free = labels == n
    free_first = torch.argsort(_taken_columns(labels).to(torch.uint8), dim=-1, stable=True)
    rank = (is_free.cumsum(-1) - 1).clamp_min(0)
    return torch.where(is_free, torch.gather(free_first, -1, rank), labels)


def force_padding(
    scores: Float[Tensor, "B R N N"], mask: Bool[Tensor, "B N"] | None
) -> Float[Tensor, "B R N N"]:
    """Make padded nodes map to themselves: all their other assignments are forbidden."""
    if mask is None:
        return scores
    is_real = (mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1)
    own = torch.diag_embed(~mask).unsqueeze(1)
    return scores.masked_fill(~is_real, -FORBIDDEN).masked_fill(own, FORBIDDEN)


def masked_deviation(
    scores: Float[Tensor, "B R N N"], mask: Bool[Tensor, "B N"] | None
) -> Float[Tensor, "B R 1 1"]:
    """Standard deviation over the assignments of real nodes, rows and columns centred first.

    A constant per row or per column changes no matching, so it must not set the scale.
    """
    if mask is None:
        weight = scores.new_ones(1, 1, 1, 1).expand(1, 1, *scores.shape[2:])
    else:
        weight = (mask.unsqueeze(1) & mask.unsqueeze(2)).to(scores.dtype).unsqueeze(1)
    scores = scores * weight
    for dim in (-1, -2):
        count = weight.sum(dim, keepdim=True).clamp_min(1)
        scores = (scores - scores.sum(dim, keepdim=True) / count) * weight
    count = weight.sum((-1, -2), keepdim=True).clamp_min(1)
    return (scores.square().sum((-1, -2), keepdim=True) / count).sqrt().clamp_min(1e-6)


def _even_assignment(
    vertex_affinity: Float[Tensor, "B N N"], mask: Bool[Tensor, "B N"] | None
) -> Float[Tensor, "B N N"]:
    if mask is None:
        return torch.full_like(vertex_affinity, 1.0 / vertex_affinity.shape[1])
    is_real = (mask.unsqueeze(1) & mask.unsqueeze(2)).to(vertex_affinity.dtype)
    num_real = mask.sum(1).clamp_min(1).view(-1, 1, 1)
    return is_real / num_real + torch.diag_embed((~mask).to(vertex_affinity.dtype))


def _balanced_weights(
    scores: Float[Tensor, "B R N N"],
) -> tuple[Float[Tensor, "B R N N"], Float[Tensor, "B R 1 N"]]:
    """Normalise rows, columns and rows of exp(scores); returns also log of the column sums."""
    weights = torch.softmax(scores, -1)
    # a column whose weights all underflow gets a finite discount; later rounds bring it back
    columns = weights.sum(-2, keepdim=True).clamp_min(1e-30)
    weights = weights / columns
    return weights / weights.sum(-1, keepdim=True), columns.log()


def _taken_columns(labels: Int64[Tensor, "*G N"]) -> Bool[Tensor, "*G N"]:
    """Tell which columns are taken; the label N stands for none."""
    n = labels.shape[-1]
    taken = torch.zeros(*labels.shape[:-1], n + 1, dtype=torch.bool, device=labels.device)
    return taken.scatter(-1, labels, True)[..., :n]
