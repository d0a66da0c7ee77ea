"""The terms of a matching problem, laid out for search: gradients, exchanges, soft gradients.

Two layouts serve the same three questions. `DenseTerms` holds the affinity of every two
assignments (N^4 numbers a graph): rows of it are read whole, which is fastest up to N = 32 or so.
`EdgeTerms` keeps the N^2 k^2 edge pairs and looks every entry up, for larger graphs.

The gradient of the objective at a permutation p is G[j, l] = vertex_affinity[j, l] + what all other
assignments i -> p(i) pay together with j -> l.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node; Nk: edge slots.
    R: searches in a graph.
    A: assignments (a node and its label) in question; M: pairs of assignments.
    NN: N * N, the assignment i -> c at index i * N + c.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lvmmed.matching.graph import Problem, edges_present

DENSE_BYTES = 2**28
"""Largest size of the dense layout of a whole batch; above it edges are looked up."""


@runtime_checkable
class PairTerms(Protocol):
    """What the search asks of the second-order terms; absent edges and padded nodes pay nothing."""

    def rows(self, assignments: Int64[Tensor, "B R A"]) -> Float[Tensor, "B R A NN"]:
        """Give what each assignment pays together with every other one."""
        ...

    def pairs(
        self, first: Int64[Tensor, "B R M"], second: Int64[Tensor, "B R M"]
    ) -> Float[Tensor, "B R M"]:
        """Give what two assignments pay together."""
        ...

    def soft(self, assignment: Float[Tensor, "B R NN"]) -> Float[Tensor, "B R NN"]:
        """Sum the rows, weighted by a soft assignment."""
        ...


def build_terms(problem: Problem, *, is_clean: bool = False) -> PairTerms:
    """Choose the layout by its size; a clean problem has zeros at absent edges already."""
    num_graphs, num_nodes, _ = problem.vertex_affinity.shape
    num_bytes = num_graphs * num_nodes**4 * problem.edge_affinity.element_size()
    layout = DenseTerms if num_bytes <= DENSE_BYTES else EdgeTerms
    return layout(problem, is_clean=is_clean)


class DenseTerms:
    """All pairs of assignments in one symmetric `table`, [B, NN, NN]."""

    def __init__(self, problem: Problem, *, is_clean: bool = False) -> None:
        num_graphs, num_nodes, k = problem.neighbors_s.shape
        num_assignments = num_nodes**2
        affinity = problem.edge_affinity if is_clean else present_edge_affinity(problem)
        tails = torch.arange(num_nodes, device=affinity.device).repeat_interleave(k)
        heads_s = problem.neighbors_s.flatten(1).clamp_min(0)
        heads_t = problem.neighbors_t.flatten(1).clamp_min(0)
        # [B, Nk, Nk]: the two assignments (tail to tail, head to head) that keep an edge pair
        of_tails = (tails * num_nodes).unsqueeze(1) + tails.unsqueeze(0)
        of_heads = (heads_s * num_nodes).unsqueeze(2) + heads_t.unsqueeze(1)
        self.table = affinity.new_zeros(num_graphs, num_assignments, num_assignments)
        for one, other in ((of_tails, of_heads), (of_heads, of_tails)):
            at = one * num_assignments + other
            # absent slots point at real places, so add (zeros) instead of writing
            self.table.view(num_graphs, -1).scatter_add_(1, at.flatten(1), affinity.flatten(1))
        self._offset = (torch.arange(num_graphs, device=affinity.device) * num_assignments).view(
            -1, 1, 1
        )

    def rows(self, assignments: Int64[Tensor, "B R A"]) -> Float[Tensor, "B R A NN"]:
        """Read whole rows of the table."""
        rows = self.table.flatten(0, 1).index_select(0, (assignments + self._offset).flatten())
        return rows.view(*assignments.shape, -1)

    def pairs(
        self, first: Int64[Tensor, "B R M"], second: Int64[Tensor, "B R M"]
    ) -> Float[Tensor, "B R M"]:
        """Read single entries of the table."""
        num_assignments = self.table.shape[-1]
        at = torch.add(second, first, alpha=num_assignments)
        return torch.gather(self.table.flatten(1), 1, at.flatten(1)).view(first.shape)

    def soft(self, assignment: Float[Tensor, "B R NN"]) -> Float[Tensor, "B R NN"]:
        """Multiply with the table."""
        return torch.bmm(assignment, self.table)


class EdgeTerms:
    """Edge pairs only; two tables say which edge joins two nodes."""

    def __init__(self, problem: Problem, *, is_clean: bool = False) -> None:
        num_graphs, num_nodes, k = problem.neighbors_s.shape
        num_edges = num_nodes * k
        self._num_nodes, self._k = num_nodes, k
        self._affinity = problem.edge_affinity if is_clean else present_edge_affinity(problem)
        # row and column `num_edges` mean "no such edge" and pay nothing
        padded = torch.nn.functional.pad(self._affinity, (0, 1, 0, 1))
        self._padded = padded.flatten(1)
        self._stride = num_edges + 1
        self._heads_s = problem.neighbors_s.clamp_min(0)
        self._heads_t = problem.neighbors_t.clamp_min(0)
        self._edge_s = _edge_between(problem.neighbors_s)
        self._edge_t = _edge_between(problem.neighbors_t)
        # incidence matrices: products with them sum in a fixed order, scatter_add would not
        like = self._affinity.new_zeros(num_graphs, num_nodes, num_edges)
        self._into_s = like.scatter(1, self._heads_s.flatten(1).unsqueeze(1), 1.0)
        into_t = like.scatter(1, self._heads_t.flatten(1).unsqueeze(1), 1.0)
        self._out_of_t = into_t.transpose(1, 2)

    def rows(self, assignments: Int64[Tensor, "B R A"]) -> Float[Tensor, "B R A NN"]:
        """Look up both directions between an assignment and all others."""
        num_graphs, num_searches, num_rows = assignments.shape
        num_nodes = self._num_nodes
        node = torch.div(assignments, num_nodes, rounding_mode="floor").flatten(1)
        label = (assignments % num_nodes).flatten(1)
        total = None
        for edge_s, edge_t in (
            (self._edge_s, self._edge_t),
            (self._edge_s.transpose(1, 2), self._edge_t.transpose(1, 2)),
        ):
            of_s = _take_rows(edge_s, node).unsqueeze(3) * self._stride  # [B, RA, N, 1]
            of_t = _take_rows(edge_t, label).unsqueeze(2)  # [B, RA, 1, N]
            value = torch.gather(self._padded, 1, (of_s + of_t).flatten(1))
            total = value if total is None else total.add_(value)
        assert total is not None
        return total.view(num_graphs, num_searches, num_rows, num_nodes**2)

    def pairs(
        self, first: Int64[Tensor, "B R M"], second: Int64[Tensor, "B R M"]
    ) -> Float[Tensor, "B R M"]:
        """Look up both directions between two assignments."""
        num_nodes = self._num_nodes
        node_a = torch.div(first, num_nodes, rounding_mode="floor")
        node_b = torch.div(second, num_nodes, rounding_mode="floor")
        label_a, label_b = first % num_nodes, second % num_nodes
        edge_s, edge_t = self._edge_s.flatten(1), self._edge_t.flatten(1)
        total = None
        for (n_1, l_1), (n_2, l_2) in (
            ((node_a, label_a), (node_b, label_b)),
            ((node_b, label_b), (node_a, label_a)),
        ):
            of_s = torch.gather(edge_s, 1, (n_1 * num_nodes + n_2).flatten(1))
            of_t = torch.gather(edge_t, 1, (l_1 * num_nodes + l_2).flatten(1))
            value = torch.gather(self._padded, 1, of_s * self._stride + of_t)
            total = value if total is None else total.add_(value)
        assert total is not None
        return total.view(first.shape)

    def soft(self, assignment: Float[Tensor, "B R NN"]) -> Float[Tensor, "B R NN"]:
        """Sum over heads for every tail, and over tails for every head."""
        num_graphs, num_searches, _ = assignment.shape
        n, k = self._num_nodes, self._k
        num_edges = n * k
        soft = assignment.view(num_graphs, num_searches, n, n)
        heads_s = self._heads_s.view(num_graphs, 1, num_edges, 1)
        heads_t = self._heads_t.view(num_graphs, 1, 1, num_edges)
        at_heads = torch.gather(soft, 2, heads_s.expand(-1, num_searches, -1, n))
        at_heads = torch.gather(at_heads, 3, heads_t.expand(-1, num_searches, num_edges, -1))
        affinity = self._affinity.unsqueeze(1)
        by_tails = (affinity * at_heads).view(num_graphs, num_searches, n, k, n, k).sum((3, 5))
        at_tails = affinity * soft.repeat_interleave(k, 2).repeat_interleave(k, 3)
        by_heads = self._into_s.unsqueeze(1) @ at_tails @ self._out_of_t.unsqueeze(1)
        return (by_tails + by_heads).flatten(2)


def present_edge_affinity(problem: Problem) -> Float[Tensor, "B Nk Nk"]:
    """Put 0 where either edge is absent, whatever stands there."""
    present_s = edges_present(problem.neighbors_s, problem.mask).flatten(1)
    present_t = edges_present(problem.neighbors_t, problem.mask).flatten(1)
    both = present_s.unsqueeze(2) & present_t.unsqueeze(1)
    return torch.where(both, problem.edge_affinity, 0.0)


def _edge_between(neighbors: Int64[Tensor, "B N k"]) -> Int64[Tensor, "B N N"]:
    """Index of the edge i -> j, or N * k where there is none."""
    num_graphs, num_nodes, k = neighbors.shape
    edges = torch.arange(num_nodes * k, device=neighbors.device).view(1, num_nodes, k)
    # absent slots write into an extra column that is cut off
    column = neighbors.masked_fill(neighbors < 0, num_nodes)
    table = neighbors.new_full((num_graphs, num_nodes, num_nodes + 1), num_nodes * k)
    return table.scatter(2, column, edges.expand(num_graphs, -1, -1))[..., :num_nodes].contiguous()


def _take_rows(table: Int64[Tensor, "B N N"], rows: Int64[Tensor, "B X"]) -> Int64[Tensor, "B X N"]:
    return torch.gather(table, 1, rows.unsqueeze(2).expand(-1, -1, table.shape[2]))
