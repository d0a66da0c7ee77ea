"""Matching loss with a gradient through the solver: implicit maximum likelihood estimation (I-MLE).

The loss is the Hamming distance of the matching v that the solver finds for perturbed affinities
from the identity v* (node i of one view is node i of the other). Its gradient with respect to the
affinities is (v - v_lambda) / lambda, where v_lambda solves the same perturbed problem after a
step of length lambda against the loss.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node.
    Nk: edge slots of a graph, N * k; edge (i, a) stands at index i * k + a.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.checks import check_shapes
from lvmmed.matching.graph import Problem, at_least_single
from lvmmed.matching.solver import Matching, preserved_edges, solve
from lvmmed.matching.terms import present_edge_affinity
from lvmmed.types import InputError
from lvmmed.uploads import upload

Solver: TypeAlias = Callable[..., Matching]
"""What solves the problems of a loss, with the arguments of `solver.solve`."""


@dataclass(frozen=True)
class MatchingLoss:
    """What one evaluation of the matching loss gives.

    Attributes:
        loss: reduced Hamming distance; carries the gradient.
        hamming: 2 x wrongly matched real nodes, one a graph.
        matching: solution of the perturbed problem (noise added, margin subtracted).
        second_solve_skipped: True where the second solution is the identity by proof (or by
            definition, for an infinite lambda), one a graph.
    """

    loss: Float[Tensor, ""]
    hamming: Float[Tensor, "B"]
    matching: Matching
    second_solve_skipped: Bool[Tensor, "B"]


def draw_gumbel(
    shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device | str
) -> Float[Tensor, "..."]:
    """Draw standard Gumbel noise in single precision (mean 0.577, deviation 1.283).

    Args:
        shape: shape of the result.
        generator: source of randomness on any device; None = torch's own of `device`.
        device: where the result is wanted.

    Returns:
        Independent draws of -log(-log(u)), u uniform.
    """
    source = generator.device if generator is not None else device
    uniform = torch.rand(*shape, generator=generator, device=source)
    uniform = upload(uniform, device)
    return -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))


def matching_loss(  # noqa: PLR0913 -- the problem, the perturbation and the solver's effort
    vertex_affinity: Float[Tensor, "B N N"],
    edge_affinity: Float[Tensor, "B Nk Nk"],
    neighbors_s: Int64[Tensor, "B N k"],
    neighbors_t: Int64[Tensor, "B N k"],
    *,
    mask: Bool[Tensor, "B N"] | None = None,
    noise: float,
    margin: float,
    lambda_: float,
    restarts: int = 4,
    iterations: int = 16,
    reduction: Literal["node", "graph"] = "node",
    generator: torch.Generator | None = None,
    vertex_noise: Float[Tensor, "B N N"] | None = None,
    edge_noise: Float[Tensor, "B Nk Nk"] | None = None,
    solver: Solver | None = None,
) -> MatchingLoss:
    """Hamming distance of the perturbed matching from the identity, with the I-MLE gradient.

    The problem solved has vertices vertex_affinity + noise * vertex_noise - margin * identity and
    edges edge_affinity + noise * edge_noise. With v its matching and w the pairs of edges that v
    preserves, the gradients are (v - v_lambda) / lambda and (w - w_lambda) / lambda, reduced like
    the loss. v_lambda solves the same problem (same noise) with lambda added at all true pairs and
    subtracted at all others, which is -lambda times the gradient of the Hamming distance of a
    graph. With an infinite lambda it is the identity and the gradients are v - v* and w - w*:
    those of the perturbed Fenchel-Young loss, whatever multiple of the Hamming distance is printed.

    For a finite lambda a bound proves, graph by graph, that the second solution is the identity;
    on the CPU such graphs are not solved again. The others are solved in one batch with the first
    problems and the same search noise.

    Args:
        vertex_affinity: worth of matching node i of view s with node a of view t.
        edge_affinity: worth of preserving an edge; absent edges are ignored.
        neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
        neighbors_t: the same of view t.
        mask: True at real nodes; None when all are.
        noise: scale of the Gumbel noise on vertices and edges, 0 or more.
        margin: subtracted from the affinity of every true pair, so that the true matching must win
            by that much (loss-augmented inference); 0 for none.
        lambda_: length of the step against the loss, above 0; math.inf allowed.
        restarts: searches in a graph.
        iterations: exchanges in a search.
        reduction: "node" divides the sum over graphs by the number of real nodes, "graph" by the
            number of graphs (the paper's).
        generator: source of the Gumbel noise that is not given (vertices first), then of the
            search; None = torch's own for the noise, a fixed pattern for the search.
        vertex_noise: standard noise to use, so that a caller can make it a function of the graph.
        edge_noise: the same for edges.
        solver: what solves both problems; None = `solver.solve`. A training loop on a GPU saves
            most of the time with a `cuda_graph.GraphedSolve` that it keeps.

    Returns:
        The loss with its gradient, and the matching it judges. Wrong arguments raise InputError.

    Source:
        Paper equations 5 and 6 and algorithm 1. The edge gradient, which algorithm 1 leaves open,
        is that of the preserved edge pairs; margin, infinite lambda and the bound are ours.
    """
    check_shapes(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)
    dtype = at_least_single(vertex_affinity).dtype
    _check_settings(noise, margin, lambda_, reduction)
    with torch.no_grad():
        perturbed = Problem(
            vertex_affinity=_perturb(
                vertex_affinity.to(dtype), vertex_noise, noise, generator, name="vertex_noise"
            )
            - margin * torch.eye(vertex_affinity.shape[1], device=vertex_affinity.device),
            edge_affinity=_perturb(
                edge_affinity.to(dtype), edge_noise, noise, generator, name="edge_noise"
            ),
            neighbors_s=neighbors_s,
            neighbors_t=neighbors_t,
            mask=mask,
        )
        search = partial(
            solver or solve, restarts=restarts, iterations=iterations, generator=generator
        )
        matching, second, is_skipped = _solve_both(perturbed, lambda_, search)
        hamming = _hamming(matching.permutation, mask).to(perturbed.vertex_affinity.dtype)
        num_units = _num_units(vertex_affinity, mask, reduction)
        scale = 1.0 if math.isinf(lambda_) else 1.0 / lambda_
        both = (matching.permutation, second)
        v, v_lambda = (_assignments(one, mask).to(hamming.dtype) for one in both)
        w, w_lambda = (_edge_pairs(perturbed, one).to(hamming.dtype) for one in both)
        vertex_gradient = (v - v_lambda) * (scale / num_units)
        edge_gradient = (w - w_lambda) * (scale / num_units)
        value = hamming.sum() / num_units
    loss = _WithGradient.apply(
        vertex_affinity, edge_affinity, value, vertex_gradient, edge_gradient
    )
    return MatchingLoss(loss, hamming, matching, is_skipped)


class _WithGradient(torch.autograd.Function):
    """Pass a value on and hand given gradients back, times the incoming one."""

    @staticmethod
    def forward(
        ctx: Any,
        vertex_affinity: Tensor,
        edge_affinity: Tensor,
        value: Tensor,
        vertex_gradient: Tensor,
        edge_gradient: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(
            vertex_gradient.to(vertex_affinity.dtype), edge_gradient.to(edge_affinity.dtype)
        )
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        vertex_gradient, edge_gradient = ctx.saved_tensors
        factor = incoming[0]
        vertex = (factor * vertex_gradient).to(vertex_gradient.dtype)
        edge = (factor * edge_gradient).to(edge_gradient.dtype)
        return vertex, edge, None, None, None


@torch.no_grad()
def second_solve_is_identity(problem: Problem, lambda_: float) -> Bool[Tensor, "B"]:
    """Prove that the identity is the only best matching after a step of `lambda_`.

    The step adds lambda at all true pairs and subtracts it elsewhere, so a permutation p that moves
    m nodes falls behind the identity by 2 * lambda * m on account of the step. What it can gain
    otherwise is bounded node by node:

    * Vertices: a moved node i gains at most d(i) = max over a != i of vertex[i, a] - vertex[i, i].
    * Edges: a pair that edge e = (i -> j) of view s pays changes only if i or j moves. It then
      rises by at most u(e) = max(0, max over f of edge[e, f]) - (what e pays at the identity),
      which is never negative. Charge it to every moved end: the rise of all edges is at most the
      sum over moved nodes i of the sum of u(e) over the edges e that touch i.

    So if d(i) + sum over e touching i of u(e) < 2 * lambda at every real node i, then every p other
    than the identity loses.
    """
    num_graphs, n, k = problem.neighbors_s.shape
    identity = torch.arange(n, device=problem.neighbors_s.device).expand(num_graphs, 1, n)
    vertex = problem.vertex_affinity
    is_own = torch.eye(n, dtype=torch.bool, device=vertex.device)
    closed = is_own if problem.mask is None else is_own | ~problem.mask.unsqueeze(1)
    own = vertex.diagonal(dim1=1, dim2=2)
    rise = vertex.masked_fill(closed, -torch.inf).amax(2) - own
    if k:
        edge = present_edge_affinity(problem)
        kept = preserved_edges(problem, identity).squeeze(1)  # [B, N, k, k]
        paid = edge.view(num_graphs, n, k, n, k).diagonal(dim1=1, dim2=3)  # [B, k, k, N]
        paid = torch.where(kept, paid.permute(0, 3, 1, 2), 0.0).sum(3).flatten(1)
        slack = edge.amax(2).clamp_min(0.0) - paid  # [B, Nk]
        heads = problem.neighbors_s.clamp_min(0).flatten(1)
        # slots of absent edges have slack 0, wherever they point
        rise = rise + slack.view(num_graphs, n, k).sum(2)
        rise = rise.scatter_add(1, heads, slack)
    is_safe = rise < 2 * lambda_
    if problem.mask is not None:
        is_safe = is_safe | ~problem.mask
    return is_safe.all(1)


def _solve_both(
    problem: Problem, lambda_: float, search: Solver
) -> tuple[Matching, Int64[Tensor, "B N"], Bool[Tensor, "B"]]:
    """Solve the perturbed problem and, where it must be, the stepped one, in one batch."""
    num_graphs, n, _ = problem.vertex_affinity.shape
    identity = torch.arange(n, device=problem.neighbors_s.device).expand(num_graphs, n)
    if math.isinf(lambda_):
        everywhere = identity.new_ones(num_graphs, dtype=torch.bool)
        return _solve(problem, search), identity, everywhere
    is_identity = second_solve_is_identity(problem, lambda_)
    rows = torch.arange(num_graphs, device=identity.device)
    if identity.device.type == "cpu":
        rows = rows[~is_identity]  # on a GPU this would wait for the device; the batch is cheap
    both = _solve(_with_steps(problem, rows, lambda_), search)
    first = Matching(both.permutation[:num_graphs], both.objective[:num_graphs])
    second = identity.clone().index_copy(0, rows, both.permutation[num_graphs:])
    return first, torch.where(is_identity.unsqueeze(1), identity, second), is_identity


def _with_steps(problem: Problem, rows: Int64[Tensor, " X"], lambda_: float) -> Problem:
    """Append, for some graphs, the problem after a step of lambda against the Hamming distance."""
    n = problem.vertex_affinity.shape[1]
    slope = 1.0 - 2.0 * torch.eye(
        n, device=problem.vertex_affinity.device, dtype=problem.vertex_affinity.dtype
    )
    mask = problem.mask
    return Problem(
        vertex_affinity=torch.cat(
            [problem.vertex_affinity, problem.vertex_affinity[rows] - lambda_ * slope]
        ),
        edge_affinity=torch.cat([problem.edge_affinity, problem.edge_affinity[rows]]),
        neighbors_s=torch.cat([problem.neighbors_s, problem.neighbors_s[rows]]),
        neighbors_t=torch.cat([problem.neighbors_t, problem.neighbors_t[rows]]),
        mask=None if mask is None else torch.cat([mask, mask[rows]]),
    )


def _solve(problem: Problem, search: Solver) -> Matching:
    return search(
        problem.vertex_affinity,
        problem.edge_affinity,
        problem.neighbors_s,
        problem.neighbors_t,
        mask=problem.mask,
    )


def _perturb(
    affinity: Float[Tensor, "B X X"],
    given: Tensor | None,
    noise: float,
    generator: torch.Generator | None,
    *,
    name: str,
) -> Float[Tensor, "B X X"]:
    if given is not None and given.shape != affinity.shape:
        raise InputError(f"{name}: shape {tuple(given.shape)}, need {list(affinity.shape)}")
    if noise == 0:
        return affinity
    if given is None:
        given = draw_gumbel(affinity.shape, generator=generator, device=affinity.device)
    return affinity + noise * given.to(affinity)


def _assignments(
    permutation: Int64[Tensor, "B N"], mask: Bool[Tensor, "B N"] | None
) -> Bool[Tensor, "B N N"]:
    columns = torch.arange(permutation.shape[1], device=permutation.device)
    is_matched = permutation.unsqueeze(2) == columns
    return is_matched if mask is None else is_matched & mask.unsqueeze(2)


def _edge_pairs(problem: Problem, permutation: Int64[Tensor, "B N"]) -> Bool[Tensor, "B Nk Nk"]:
    """Tell which pairs of edges, one of each view, the permutation maps onto each other."""
    num_graphs, n, k = problem.neighbors_s.shape
    kept = preserved_edges(problem, permutation.unsqueeze(1)).squeeze(1)  # [B, N, k, k]
    at_label = permutation.view(num_graphs, n, 1, 1, 1).expand(-1, -1, k, -1, k)
    pairs = kept.new_zeros(num_graphs, n, k, n, k).scatter(3, at_label, kept.unsqueeze(3))
    return pairs.view(num_graphs, n * k, n * k)


def _hamming(
    permutation: Int64[Tensor, "B N"], mask: Bool[Tensor, "B N"] | None
) -> Int64[Tensor, "B"]:
    is_wrong = permutation != torch.arange(permutation.shape[1], device=permutation.device)
    if mask is not None:
        is_wrong = is_wrong & mask
    return 2 * is_wrong.sum(1)


def _num_units(
    vertex_affinity: Tensor, mask: Bool[Tensor, "B N"] | None, reduction: str
) -> Tensor | int:
    num_graphs, n, _ = vertex_affinity.shape
    if reduction == "graph":
        return max(1, num_graphs)
    if mask is None:
        return max(1, num_graphs * n)
    return mask.sum().clamp_min(1)


def _check_settings(noise: float, margin: float, lambda_: float, reduction: str) -> None:
    if not (noise >= 0 and math.isfinite(noise)):
        raise InputError(f"noise: got {noise}, need a scale of 0 or more")
    if not math.isfinite(margin):
        raise InputError(f"margin: got {margin}, need a finite number")
    if not lambda_ > 0:
        raise InputError(f"lambda_: got {lambda_}, need a number above 0 or math.inf")
    if reduction not in ("node", "graph"):
        raise InputError(f"reduction: got {reduction!r}, need 'node' or 'graph'")
