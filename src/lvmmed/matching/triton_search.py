"""The tabu search in one launch on NVIDIA GPUs; `search_choice` decides when it is used.

Triton is imported when the search is first called, so this module loads without it.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; R: searches in a graph; T: iterations.
"""

import contextlib

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.tabu import tabu_ends
from lvmmed.matching.terms import DenseTerms
from lvmmed.types import InputError

MAX_NODES = 32
"""Nodes of the largest graph whose search fits the registers."""

NUM_WARPS = {8: 1, 16: 1, 32: 4}
"""Warps of a program, by the padded number of nodes."""


def triton_tabu_search(
    terms: DenseTerms,
    vertex_affinity: Float[Tensor, "B N N"],
    starts: Int64[Tensor, "B R N"],
    tenures: Float[Tensor, "T R 2"],
    *,
    mask: Bool[Tensor, "B N"] | None,
    num_warps: int | None = None,
) -> Int64[Tensor, "B R N"]:
    """Search as `tabu_search` does, exchange by exchange, in one launch.

    The two part ways only where rounding decides between exchanges, as sums are taken in another
    order.

    Args:
        terms: the second-order terms.
        vertex_affinity: the first-order terms, in single precision.
        starts: where each search begins.
        tenures: uniform numbers in 0..1 that set how long the two labels stay tabu.
        mask: True at real nodes; None when all are.
        num_warps: warps of a program; None takes the table's.

    Returns:
        The best permutation that each search met.

    Raises:
        InputError: more than 32 nodes, or not single precision.
    """
    num_graphs, num_searches, n = starts.shape
    if n > MAX_NODES:
        raise InputError(f"starts: N = {n} nodes, the kernel takes at most {MAX_NODES}")
    if vertex_affinity.dtype != torch.float32:
        raise InputError(f"vertex_affinity: {vertex_affinity.dtype}, the kernel takes float32")
    if n < 2:
        return starts
    from lvmmed.matching.triton_kernel import search_kernel

    device = starts.device
    padded = padded_nodes(n)
    is_real = mask if mask is not None else starts.new_ones(num_graphs, n, dtype=torch.bool)
    found = torch.empty_like(starts, memory_format=torch.contiguous_format)
    # an end between two iterations works like the one after it
    ends = tabu_ends(tenures, n).ceil().to(torch.int32)
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on_device:
        search_kernel[(num_graphs * num_searches,)](
            vertex_affinity.contiguous(),
            terms.table,
            starts.contiguous(),
            ends.contiguous(),
            is_real.contiguous(),
            found,
            n,
            num_searches,
            tenures.shape[0],
            padded=padded,
            num_warps=num_warps or NUM_WARPS[padded],
            num_stages=1,
        )
    return found


def padded_nodes(num_nodes: int) -> int:
    """Round up to the sides that blocks of the kernel have: 8, 16 or 32."""
    return max(8, 1 << (num_nodes - 1).bit_length())
