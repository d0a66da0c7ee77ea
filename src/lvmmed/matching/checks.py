"""Checks of a matching problem given by a user: shapes always, values where that needs no wait.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node.
"""

import torch
from torch import Tensor

from lvmmed.matching.graph import Problem, edges_present
from lvmmed.types import InputError


def check_shapes(
    vertex_affinity: Tensor,
    edge_affinity: Tensor,
    neighbors_s: Tensor,
    neighbors_t: Tensor,
    mask: Tensor | None,
) -> None:
    """Check shapes and types; needs no look at the values.

    Args:
        vertex_affinity: must be [B, N, N], floating point.
        edge_affinity: must be [B, N * k, N * k], floating point.
        neighbors_s: must be [B, N, k], int64.
        neighbors_t: must be [B, N, k], int64.
        mask: must be [B, N], bool, or None.

    Raises:
        InputError: a shape or type does not fit the vertex affinity's [B, N, N].
    """
    shape = tuple(vertex_affinity.shape)
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] == 0:
        raise InputError(f"vertex_affinity: shape {shape}, need [B, N, N] with N at least 1")
    num_graphs, num_nodes, _ = shape
    if neighbors_s.ndim != 3 or tuple(neighbors_s.shape[:2]) != (num_graphs, num_nodes):
        need = f"[{num_graphs}, {num_nodes}, k]"
        raise InputError(f"neighbors_s: shape {tuple(neighbors_s.shape)}, need {need}")
    k = neighbors_s.shape[2]
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "neighbors_t": (neighbors_t, (num_graphs, num_nodes, k)),
        "edge_affinity": (edge_affinity, (num_graphs, num_nodes * k, num_nodes * k)),
    }
    if mask is not None:
        expected["mask"] = (mask, (num_graphs, num_nodes))
    for name, (values, need_shape) in expected.items():
        if tuple(values.shape) != need_shape:
            raise InputError(f"{name}: shape {tuple(values.shape)}, need {list(need_shape)}")
    _check_types(vertex_affinity, edge_affinity, neighbors_s, neighbors_t, mask)


def check_values(problem: Problem) -> None:
    """Check the values; on a GPU this waits for the device.

    An InputError is raised where an affinity is not finite at a real node or a present edge, a node
    has N or more neighbours, or a neighbour is out of range, repeated or the node itself.
    """
    for name, neighbors in (
        ("neighbors_s", problem.neighbors_s),
        ("neighbors_t", problem.neighbors_t),
    ):
        _check_neighbors(name, neighbors)
    vertex, edge = problem.vertex_affinity, problem.edge_affinity
    if not bool(torch.isfinite(vertex).all()):
        absent = torch.zeros_like(vertex, dtype=torch.bool)
        if problem.mask is not None:
            absent = ~(problem.mask.unsqueeze(1) & problem.mask.unsqueeze(2))
        _refuse_not_finite("vertex_affinity", vertex.masked_fill(absent, 0.0))
    if not bool(torch.isfinite(edge).all()):
        present_s = edges_present(problem.neighbors_s, problem.mask).flatten(1)
        present_t = edges_present(problem.neighbors_t, problem.mask).flatten(1)
        absent = ~(present_s.unsqueeze(2) & present_t.unsqueeze(1))
        _refuse_not_finite("edge_affinity", edge.masked_fill(absent, 0.0))


def check_permutation(permutation: Tensor, vertex_affinity: Tensor) -> None:
    """Check that matchings fit a problem; their values on the CPU only.

    Args:
        permutation: must be [B, N], int64, each row a permutation of 0..N-1.
        vertex_affinity: of the problem, [B, N, N].

    Raises:
        InputError: it does not fit.
    """
    need = list(vertex_affinity.shape[:2])
    if list(permutation.shape) != need:
        raise InputError(f"permutation: shape {tuple(permutation.shape)}, need {need}")
    if permutation.dtype != torch.int64:
        raise InputError(f"permutation: dtype {permutation.dtype}, need torch.int64")
    if permutation.device.type != "cpu":
        return
    is_wrong = (permutation.sort(1).values != torch.arange(need[1])).any(1)
    if bool(is_wrong.any()):
        first = int(is_wrong.nonzero()[0])
        raise InputError(
            f"permutation: row {first} is {permutation[first].tolist()}, need each of "
            f"0..{need[1] - 1} once"
        )


def _check_types(
    vertex_affinity: Tensor,
    edge_affinity: Tensor,
    neighbors_s: Tensor,
    neighbors_t: Tensor,
    mask: Tensor | None,
) -> None:
    for name, values in (("vertex_affinity", vertex_affinity), ("edge_affinity", edge_affinity)):
        if not values.is_floating_point():
            raise InputError(f"{name}: dtype {values.dtype}, need floating point")
    for name, values in (("neighbors_s", neighbors_s), ("neighbors_t", neighbors_t)):
        if values.dtype != torch.int64:
            raise InputError(f"{name}: dtype {values.dtype}, need torch.int64")
    if mask is not None and mask.dtype != torch.bool:
        raise InputError(f"mask: dtype {mask.dtype}, need torch.bool (True at real nodes)")


def _check_neighbors(name: str, neighbors: Tensor) -> None:
    num_nodes, k = neighbors.shape[1:]
    present = neighbors >= 0
    if k >= num_nodes and bool((present.sum(-1) >= num_nodes).any()):
        raise InputError(
            f"{name}: k = {k} neighbours of a node in a graph of N = {num_nodes}; "
            f"k must be below N (leave further slots at -1)"
        )
    outside = (neighbors < -1) | (neighbors >= num_nodes)
    if bool(outside.any()):
        raise InputError(
            f"{name}: index {int(neighbors[outside][0])}, need -1 (absent) or 0..{num_nodes - 1}"
        )
    own = torch.arange(num_nodes, device=neighbors.device).view(1, -1, 1)
    if bool((neighbors == own).any()):
        raise InputError(f"{name}: a node is its own neighbour; loops are not allowed")
    ordered = neighbors.sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise InputError(f"{name}: a node lists the same neighbour twice; list it once")


def _refuse_not_finite(name: str, values: Tensor) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        first = (~finite).nonzero()[0].tolist()
        raise InputError(
            f"{name}: {float(values[tuple(first)])} at {first}, need finite values; "
            "look for a division by zero or an overflow before the matching"
        )


def is_switched_on(name: str, value: str | None, *, default: bool) -> bool:
    """Read a switch of the environment.

    Args:
        name: of the variable, for the error.
        value: "1" is on, "0" off; None or nothing is the default.
        default: what holds where it is not set.

    Returns:
        Whether it is on.

    Raises:
        InputError: another value.
    """
    if value not in (None, "", "0", "1"):
        raise InputError(f"{name}: got {value!r}, need 0 (off) or 1 (on)")
    return default if not value else value == "1"
