import numpy as np
import pytest
import scipy.optimize
import torch

from lvmmed.matching.graph import Problem
from lvmmed.matching.starts import (
    force_padding,
    greedy_in_order,
    greedy_permutations,
    jitter_of_last,
    masked_deviation,
    soft_starts,
)
from lvmmed.matching.terms import DenseTerms


def greedy_by_hand(scores):
    """Take the best entry, strike out its row and column, and so on."""
    scores = scores.clone()
    labels = [-1] * scores.shape[0]
    for _ in labels:
        row, column = divmod(int(scores.argmax()), scores.shape[0])
        labels[row] = column
        scores[row], scores[:, column] = -np.inf, -np.inf
    return labels


def test_parallel_rounding_equals_taking_the_best_one_after_another(generator):
    scores = torch.randn(3, 4, 8, 8, generator=generator)
    found = greedy_permutations(scores)
    for graph in range(3):
        for search in range(4):
            one = scores[graph, search]
            assert found[graph, search].tolist() == greedy_by_hand(one)


@pytest.mark.parametrize("n", [1, 2, 17, 40])
@pytest.mark.parametrize("kind", ["constant", "random", "staircase", "low"])
def test_rounding_always_gives_a_permutation(generator, n, kind):
    scores = {
        "constant": torch.zeros(2, n, n),
        "random": torch.randn(2, n, n, generator=generator),
        # one free pair a round: the fixed number of rounds is too small
        "staircase": (torch.arange(n).view(-1, 1) + torch.arange(n)).expand(2, n, n).double(),
        "low": torch.full((2, n, n), -1e9),
    }[kind]
    found = greedy_permutations(scores).sort(1).values
    assert torch.equal(found, torch.arange(n).expand(2, n))


def test_equal_scores_go_to_the_label_that_is_earliest_in_the_order():
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    found = greedy_in_order(torch.zeros(1, 2, 3, 3), order)
    assert found.tolist() == [[[2, 0, 1], [1, 2, 0]]]
    scores = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    assert greedy_in_order(scores.expand(1, 2, 3, 3), order).tolist() == [[[0, 1, 2]] * 2]


def test_without_edges_the_first_start_is_close_to_the_linear_assignment(generator):
    vertex = torch.randn(20, 10, 10, generator=generator, dtype=torch.float64)
    none = torch.zeros(20, 10, 0, dtype=torch.int64)
    problem = Problem(
        vertex_affinity=vertex,
        edge_affinity=torch.zeros(20, 0, 0, dtype=torch.float64),
        neighbors_s=none,
        neighbors_t=none,
    )
    noise = torch.zeros(1, 10, 10, dtype=torch.float64)
    starts = soft_starts(DenseTerms(problem), vertex, noise, mask=None)
    found = vertex.gather(2, starts.transpose(1, 2)).sum()
    best = sum(
        one[scipy.optimize.linear_sum_assignment(one, maximize=True)].sum()
        for one in vertex.numpy()
    )
    greedy = vertex.gather(2, greedy_permutations(vertex).unsqueeze(2)).sum()
    assert found.item() > 0.97 * best
    assert found > greedy


def test_starts_differ_by_their_noise_and_padded_nodes_stay(generator):
    vertex = torch.randn(2, 9, 9, generator=generator)
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    none = torch.zeros(2, 9, 0, dtype=torch.int64)
    problem = Problem(
        vertex_affinity=vertex,
        edge_affinity=torch.zeros(2, 0, 0),
        neighbors_s=none,
        neighbors_t=none,
        mask=mask,
    )
    noise = torch.randn(6, 9, 9, generator=generator)
    starts = soft_starts(DenseTerms(problem), vertex, noise, mask=mask)
    assert starts.shape == (2, 6, 9)
    assert len({tuple(one) for one in starts[0].tolist()}) > 1
    assert torch.equal(starts[1, :, 4:], torch.arange(4, 9).expand(6, 5))
    assert torch.equal(starts.sort(2).values, torch.arange(9).expand(2, 6, 9))


def test_forced_padding_forbids_all_but_the_own_label():
    mask = torch.tensor([[True, False]])
    found = force_padding(torch.ones(1, 1, 2, 2), mask)
    assert found[0, 0].tolist() == [[1.0, -1e9], [-1e9, 1e9]]
    assert torch.equal(force_padding(torch.ones(1, 1, 2, 2), None), torch.ones(1, 1, 2, 2))


def test_the_deviation_ignores_rows_columns_and_padding_by_hand():
    # rows and columns centred: +-0.25 at all four places
    scores = torch.tensor([[[[1.0, 2.0], [11.0, 13.0]]]])
    assert masked_deviation(scores, None).item() == pytest.approx(0.25)
    padded = torch.nn.functional.pad(scores, (0, 1, 0, 1), value=77.0)
    mask = torch.tensor([[True, True, False]])
    assert masked_deviation(padded, mask).item() == pytest.approx(0.25)
    assert masked_deviation(torch.zeros(1, 1, 3, 3), None).item() == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("num_nodes", "num_searches", "expected"),
    [
        (16, 4, 1.5),  # 48 x 4 / 256 is less than 1
        (32, 16, 1.5),
        (16, 8, 2.25),
        (10, 4, 2.88),
        (32, 32, 2.25),
        (16, 32, 5.0),
        (4, 4, 5.0),
    ],
)
def test_noise_grows_where_many_searches_crowd_a_small_graph(num_nodes, num_searches, expected):
    assert jitter_of_last(num_nodes, num_searches) == pytest.approx(expected)
