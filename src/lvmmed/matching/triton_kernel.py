"""The tabu search as one Triton kernel; imported by `triton_search` only, where Triton is there.

A program is one search in one graph. All that it changes is held in registers: global memory is
read (affinities, start, tabu ends) and, at the very end, written once. So no thread ever reads what
another has written there, and how threads wait for each other inside of reductions and transposes
is left to the compiler.

Blocks follow the permutation p of the moment: in `gradient` and `tabu_until` the entry [i, j] is
about giving node i the label p(j). Then the exchange of the labels of i and j only needs [i, j],
[j, i] and the diagonal, and an exchange made swaps two columns.

Letters used in shapes:
    P: nodes of a block, a power of two and at least as many as the graph has (`padded`).
"""

from typing import no_type_check

import triton
import triton.language as tl

from lvmmed.matching import tabu

IMPOSSIBLE = tl.constexpr(tabu.IMPOSSIBLE)
TABU = tl.constexpr(tabu.TABU)
ASPIRATION_MARGIN = tl.constexpr(tabu.ASPIRATION_MARGIN)
BEST_MARGIN = tl.constexpr(tabu.BEST_MARGIN)

LABEL_BITS = tl.constexpr(5)
"""Bits of a node or label, of which there are at most 32."""

LABEL_MASK = tl.constexpr(31)

NO_PAIR = tl.constexpr(2**30)
"""Above the code of every exchange."""


@triton.jit
@no_type_check  # a wrapper would hide the source from the compiler
def pair_terms(
    table: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    label_row: tl.tensor,
    label_col: tl.tensor,
    num_nodes: tl.tensor,
    wanted: tl.tensor,
) -> tl.tensor:
    """Read what both assignments of two nodes pay together, before and after an exchange."""
    width = num_nodes * num_nodes
    before = (row * num_nodes + label_row) * width + col * num_nodes + label_col
    after = (row * num_nodes + label_col) * width + col * num_nodes + label_row
    paid = tl.load(table + before, mask=wanted, other=0.0)
    return paid + tl.load(table + after, mask=wanted, other=0.0)


@triton.jit
@no_type_check
def swapped_columns(
    block: tl.tensor, col: tl.tensor, first: tl.tensor, second: tl.tensor
) -> tl.tensor:
    """Exchange two columns of a block."""
    of_first = tl.sum(tl.where(col == first, block, 0), 1, keep_dims=True)
    of_second = tl.sum(tl.where(col == second, block, 0), 1, keep_dims=True)
    return tl.where(col == first, of_second, tl.where(col == second, of_first, block))


@triton.jit
@no_type_check
def exchange_gains(
    gradient: tl.tensor, paired: tl.tensor, is_open: tl.tensor, row: tl.tensor, col: tl.tensor
) -> tl.tensor:
    """Give the change of the objective by every exchange; NaN counts as impossible."""
    diagonal = tl.sum(tl.where(row == col, gradient, 0.0), 0, keep_dims=True)
    lead = gradient - diagonal
    gain = (tl.trans(lead) + lead) + paired
    # NaN differs from itself
    return tl.where(is_open & (gain == gain), gain, IMPOSSIBLE)


@triton.jit
@no_type_check
def best_exchange(
    rank: tl.tensor,
    is_pair: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    label_row: tl.tensor,
    label_col: tl.tensor,
) -> tl.tensor:
    """Give node, other node and their labels, in one number, of the exchange that ranks highest.

    Among equals it is the least number: the first by node, then by other node.
    """
    code = ((row << LABEL_BITS | col) << LABEL_BITS | label_row) << LABEL_BITS | label_col
    rank = tl.where(is_pair, rank, float("-inf"))
    return tl.min(tl.where(is_pair & (rank == tl.max(rank)), code, NO_PAIR))


@triton.jit
@no_type_check
def change_of_gradient(
    table: tl.tensor,
    cells: tl.tensor,
    inside: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    label_1: tl.tensor,
    label_2: tl.tensor,
    num_nodes: tl.tensor,
) -> tl.tensor:
    """Sum the rows of the two assignments made, less those of the two ended."""
    width = num_nodes * num_nodes
    ended_1 = table + (first * num_nodes + label_1) * width + cells
    ended_2 = table + (second * num_nodes + label_2) * width + cells
    made_1 = table + (second * num_nodes + label_1) * width + cells
    made_2 = table + (first * num_nodes + label_2) * width + cells
    change = -tl.load(ended_1, mask=inside, other=0.0) - tl.load(ended_2, mask=inside, other=0.0)
    change += tl.load(made_1, mask=inside, other=0.0)
    return change + tl.load(made_2, mask=inside, other=0.0)


@triton.jit(
    # one binary serves every number of nodes, searches and steps, and every address
    do_not_specialize=["num_nodes", "num_searches", "num_steps"],
    do_not_specialize_on_alignment=["vertex", "table", "starts", "ends", "is_real", "found"],
)
@no_type_check
def search_kernel(  # noqa: PLR0913, PLR0915 -- a search in registers cannot be cut in two
    vertex: tl.tensor,
    table: tl.tensor,
    starts: tl.tensor,
    ends: tl.tensor,
    is_real: tl.tensor,
    found: tl.tensor,
    num_nodes: tl.tensor,
    num_searches: tl.tensor,
    num_steps: tl.tensor,
    padded: tl.constexpr,
) -> None:
    """Run one search, by the rules of `tabu.tabu_search`; called by `triton_tabu_search`."""
    program = tl.program_id(0)
    graph, search = program // num_searches, program % num_searches
    width = num_nodes * num_nodes
    table += graph.to(tl.int64) * width * width
    vertex += graph * width
    starts += program * num_nodes
    is_real += graph * num_nodes
    row, col = tl.arange(0, padded)[:, None], tl.arange(0, padded)[None, :]
    inside = (row < num_nodes) & (col < num_nodes)
    is_pair = (row < col) & (col < num_nodes)
    is_open = tl.load(is_real + row, mask=row < num_nodes, other=0) != 0
    is_open = is_open & (tl.load(is_real + col, mask=col < num_nodes, other=0) != 0)
    label_row = tl.load(starts + row, mask=row < num_nodes, other=0).to(tl.int32)
    label_col = tl.load(starts + col, mask=col < num_nodes, other=0).to(tl.int32)
    cells = row * num_nodes + label_col
    gradient = tl.load(vertex + cells, mask=inside, other=0.0)
    for node in range(num_nodes):
        at = node * num_nodes + tl.load(starts + node).to(tl.int32)
        gradient += tl.load(table + at * width + cells, mask=inside, other=0.0)
    paired = pair_terms(table, row, col, label_row, label_col, num_nodes, is_pair)
    tabu_until = tl.zeros([padded, padded], tl.int32)
    best = label_col
    value = tl.sum(tl.zeros([padded], tl.float32))  # objective relative to the start
    best_value = value
    for step in range(num_steps):
        gain = exchange_gains(gradient, paired, is_open, row, col)
        is_tabu = tl.minimum(tabu_until, tl.trans(tabu_until)) > step
        is_tabu = is_tabu & (gain <= best_value - value + ASPIRATION_MARGIN)
        rank = tl.where(is_tabu, TABU, gain)
        code = best_exchange(rank, is_pair, row, col, label_row, label_col)
        first, second = code >> (3 * LABEL_BITS), (code >> (2 * LABEL_BITS)) & LABEL_MASK
        label_1, label_2 = (code >> LABEL_BITS) & LABEL_MASK, code & LABEL_MASK
        label_row = tl.where(row == first, label_2, tl.where(row == second, label_1, label_row))
        label_col = tl.where(col == first, label_2, tl.where(col == second, label_1, label_col))
        cells = row * num_nodes + label_col
        change = change_of_gradient(
            table, cells, inside, first, second, label_1, label_2, num_nodes
        )
        is_touched = (row == first) | (row == second) | (col == first) | (col == second)
        is_touched = is_touched & is_pair
        renewed = pair_terms(table, row, col, label_row, label_col, num_nodes, is_touched)
        end = ends + (step * num_searches + search) * 2
        made = (row == first) & (col == second)
        tabu_until = swapped_columns(tabu_until, col, first, second)
        tabu_until = tl.where(made, tl.load(end), tabu_until)
        tabu_until = tl.where((row == second) & (col == first), tl.load(end + 1), tabu_until)
        value += tl.sum(tl.where(made, gain, 0.0))
        best = tl.where(value > best_value + BEST_MARGIN, label_col, best)
        best_value = tl.maximum(value, best_value)
        gradient = swapped_columns(gradient, col, first, second) + change
        paired = tl.where(is_touched, renewed, paired)
    tl.store(found + program * num_nodes + col, best.to(tl.int64), mask=col < num_nodes)
