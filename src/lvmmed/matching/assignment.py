"""Linear assignment: the exact matching of graphs without edges.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float, Int64
from torch import Tensor

PRICE_TEMPERATURE, PRICE_ROUNDS = 0.02, 20
"""Of `prices`, in units of cosine; they halve the time of scipy (`benchmarks/assignment.py`)."""


@torch.no_grad()
def assign(
    scores: Float[Tensor, "B N N"], *, with_prices: bool | None = None
) -> Int64[Tensor, "B N"]:
    """Give every row a column of its own so that the sum of their scores is largest.

    Solved on the processor by shortest augmenting paths, N^3 steps at worst, as many graphs at a
    time as torch has threads. All graphs of a batch cross over from a GPU together, as every
    crossing waits for it.

    Args:
        scores: finite.
        with_prices: take `prices` off first. That changes no solution, and halves the search.
            None = on a GPU, which finds them; on a processor they cost more than they save.

    Returns:
        Column of each row.
    """
    if with_prices is None:
        with_prices = scores.device.type != "cpu"
    if with_prices:
        scores = less_prices(scores)
    if len(scores) == 0:
        return scores.new_empty(scores.shape[:2], dtype=torch.int64)
    matrices = scores.cpu().numpy()
    num_threads = min(len(matrices), torch.get_num_threads())
    if num_threads > 1:
        with ThreadPoolExecutor(num_threads) as pool:
            columns = list(pool.map(_assign_one, matrices))
    else:
        columns = [_assign_one(one) for one in matrices]
    return torch.from_numpy(np.stack(columns)).to(scores.device, torch.int64)


def less_prices(scores: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
    """Take `prices` off, then what is largest in each row and column; the same solutions.

    Args:
        scores: finite.

    Returns:
        In double precision, at most 0.
    """
    of_rows, of_columns = prices(scores)
    left = scores.double() - of_rows.double() - of_columns.double()
    left = left - left.amax(2, keepdim=True)
    return left - left.amax(1, keepdim=True)


def prices(
    scores: Float[Tensor, "B N N"],
) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B 1 N"]]:
    """Estimate what each row and each column is worth, by the dual of a soft assignment.

    At the true prices every score is at most the price of its row and column, and equal to it
    where the best assignment passes.

    Args:
        scores: finite.

    Returns:
        Prices of rows and of columns.

    Source:
        Sinkhorn's iteration; Cuturi 2013, "Sinkhorn distances".
    """
    soft = scores / PRICE_TEMPERATURE
    of_columns = soft.new_zeros(len(soft), 1, soft.shape[2])
    of_rows = soft.new_zeros(len(soft), soft.shape[1], 1)
    for _ in range(PRICE_ROUNDS):
        of_rows = (soft - of_columns).logsumexp(2, keepdim=True)
        of_columns = (soft - of_rows).logsumexp(1, keepdim=True)
    return of_rows * PRICE_TEMPERATURE, of_columns * PRICE_TEMPERATURE


def _assign_one(scores: np.ndarray) -> np.ndarray:
    found: np.ndarray = scipy.optimize.linear_sum_assignment(scores, maximize=True)[1]
    return found
