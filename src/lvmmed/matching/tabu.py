"""Robust tabu search over exchanges of two labels, all searches of a batch in lock-step.

Every iteration exchanges the labels of the two nodes whose exchange gains most, even at a loss,
unless both nodes would return to labels they left a short while ago (and no new best is reached).
The number of operations depends on shapes only, so the search can be captured as a CUDA graph.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; R: searches in a graph; T: iterations; NN: N * N.
    M: pairs of nodes, N * (N - 1) / 2.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.terms import PairTerms

TENURE = (0.5, 1.5)
"""Range of the number of iterations, as a share of N, that a left label stays tabu. With 0.3 to 0.8
the gaps are the same after a few iterations and larger by a fifth after many."""

IMPOSSIBLE = -1e30
"""Gain of an exchange with a padded node."""

TABU = -1e20
"""Rank of a tabu exchange, still above an impossible one: made only when nothing else is left."""

ASPIRATION_MARGIN = 1e-6
"""A tabu exchange is allowed when it beats the best objective so far by more than this."""

BEST_MARGIN = 1e-7
"""A permutation is a new best when it beats the best objective so far by more than this."""


def gradient_at(
    terms: PairTerms,
    vertex_affinity: Float[Tensor, "B N N"],
    permutations: Int64[Tensor, "B R N"],
) -> Float[Tensor, "B R NN"]:
    """Give the gradient of the objective at permutations (vertex terms and all rows)."""
    n = permutations.shape[-1]
    one_hot = torch.nn.functional.one_hot(permutations, n).to(vertex_affinity.dtype)
    return vertex_affinity.flatten(1).unsqueeze(1) + terms.soft(one_hot.flatten(2))


class Exchanges:
    """Index tables of all exchanges of two nodes, made once per search."""

    def __init__(self, num_nodes: int, device: torch.device) -> None:
        first, second = torch.triu_indices(num_nodes, num_nodes, 1, device=device).unbind(0)
        self.nodes = torch.stack([first, second])  # [2, M]
        self._both = self.nodes.flatten()
        # labels stay in place (0: ended) or change hands (1: made)
        rows = torch.stack([torch.stack([first, second]), torch.stack([second, first])])
        self._rows = rows * num_nodes  # [2, 2, M]

    def assignments(self, permutations: Int64[Tensor, "B R N"]) -> Int64[Tensor, "B R 2 2 M"]:
        """Give the two assignments that every exchange ends (0) and the two that it makes (1)."""
        labels = permutations.index_select(2, self._both)
        return labels.view(*permutations.shape[:2], 1, *self.nodes.shape) + self._rows


def exchange_gains(
    terms: PairTerms,
    gradient: Float[Tensor, "B R NN"],
    changes: Int64[Tensor, "B R 2 2 M"],
) -> Float[Tensor, "B R M"]:
    """Give the exact change of the objective by every exchange of two labels.

    Made minus ended gradient entries count the pair of ended assignments twice and miss the pair
    of made ones; both corrections have the same sign.
    """
    entries = torch.gather(gradient, 2, changes.flatten(2)).view(changes.shape)
    gain = (entries[:, :, 1] - entries[:, :, 0]).sum(2)
    both = terms.pairs(changes[..., 0, :].flatten(2), changes[..., 1, :].flatten(2))
    return gain.add_(both.view(*changes.shape[:3], -1).sum(2))


def tabu_ends(tenures: Float[Tensor, "T R 2"], num_nodes: int) -> Float[Tensor, "T R 2"]:
    """Give the iteration up to which each of the two labels left in an iteration stays tabu."""
    lowest, highest = max(1.0, TENURE[0] * num_nodes), max(2.0, TENURE[1] * num_nodes)
    ends = torch.arange(1, tenures.shape[0] + 1, device=tenures.device).view(-1, 1, 1)
    return ends + lowest + (highest - lowest) * tenures


def tabu_search(
    terms: PairTerms,
    vertex_affinity: Float[Tensor, "B N N"],
    starts: Int64[Tensor, "B R N"],
    tenures: Float[Tensor, "T R 2"],
    *,
    mask: Bool[Tensor, "B N"] | None,
) -> Int64[Tensor, "B R N"]:
    """Search from every start for as many iterations as there are tenures.

    Args:
        terms: the second-order terms.
        vertex_affinity: the first-order terms.
        starts: where each search begins.
        tenures: uniform numbers in 0..1 that set how long the two labels stay tabu.
        mask: True at real nodes; None when all are.

    Returns:
        The best permutation that each search met.
    """
    num_graphs, num_searches, n = starts.shape
    if n < 2:
        return starts
    exchanges = Exchanges(n, starts.device)
    ends_at = tabu_ends(tenures, n).to(vertex_affinity.dtype)
    gradient = gradient_at(terms, vertex_affinity, starts)
    tabu_until = torch.zeros_like(gradient)
    permutations, best = starts.clone(), starts
    # objectives relative to the start
    value = gradient.new_zeros(num_graphs, num_searches, 1)
    best_value = value
    is_padded = None
    if mask is not None:
        is_padded = ~mask[:, exchanges.nodes].all(1).unsqueeze(1)  # [B, 1, M]
    # rows of the two assignments that end count negative, of the two made positive; counted out on
    # the device, as numbers from Python would be copied to it
    sign = torch.arange(4, device=starts.device).ge(2).to(gradient.dtype).mul(2.0).sub(1.0)
    sign = sign.expand(num_graphs * num_searches, 1, 4)
    for step in range(tenures.shape[0]):
        changes = exchanges.assignments(permutations)
        gain = exchange_gains(terms, gradient, changes)
        if is_padded is not None:
            gain = gain.masked_fill_(is_padded, IMPOSSIBLE)
        until = torch.gather(tabu_until, 2, changes[:, :, 1].flatten(2))
        is_tabu = until.view(num_graphs, num_searches, 2, -1).amin(2) > step
        is_tabu &= gain <= best_value - value + ASPIRATION_MARGIN  # a new best is always allowed
        at = gain.masked_fill(is_tabu, TABU).max(2, keepdim=True).indices
        value = value + torch.gather(gain, 2, at)
        change = torch.gather(changes.flatten(2, 3), 3, at.unsqueeze(2).expand(-1, -1, 4, -1))
        change = change.squeeze(3)
        rows = terms.rows(change).flatten(0, 1)  # [B * R, 4, NN]
        gradient = torch.baddbmm(gradient.flatten(0, 1).unsqueeze(1), sign, rows)
        gradient = gradient.view_as(tabu_until)
        tabu_until.scatter_(2, change[..., :2], ends_at[step].expand(num_graphs, -1, -1))
        made = change[..., 2:]
        permutations.scatter_(2, torch.div(made, n, rounding_mode="floor"), made % n)
        is_better = value > best_value + BEST_MARGIN
        best = torch.where(is_better, permutations, best)
        best_value = torch.maximum(value, best_value)
    return best
