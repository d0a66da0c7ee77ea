"""Linear assignment. Expected values: all permutations, and scipy on the scores as they are."""

import itertools

import pytest
import scipy.optimize
import torch

from lvmmed.matching.assignment import assign, prices
from lvmmed.matching.starts import force_padding


def _scores(num, size, *, seed=0, signal=1.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    first, noise = torch.randn(2, num, size, 32, generator=generator)
    views = [torch.nn.functional.normalize(rows, dim=2) for rows in (first, signal * first + noise)]
    return scale * (views[0] @ views[1].mT - torch.eye(size))


def _worth(scores, columns):
    return scores.double().gather(2, columns.unsqueeze(2)).sum((1, 2))


@pytest.mark.parametrize("with_prices", [False, True])
def test_no_permutation_is_better(with_prices):
    scores = _scores(20, 5)
    found = assign(scores, with_prices=with_prices)
    every = torch.tensor(list(itertools.permutations(range(5))))
    best = torch.stack(
        [_worth(scores, one.expand(20, -1)) for one in every],
    ).amax(0)
    torch.testing.assert_close(_worth(scores, found), best)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("signal", [0.0, 0.3, 3.0])
def test_prices_change_no_solution(signal, scale):
    scores = _scores(6, 70, signal=signal, scale=scale)
    found = assign(scores, with_prices=True)
    for one, columns in zip(scores.numpy(), found.numpy(), strict=True):
        assert (scipy.optimize.linear_sum_assignment(one, maximize=True)[1] == columns).all()


def test_prices_of_a_clear_assignment_meet_its_scores():
    # the truth wins by far in every row: then its scores are worth what row and column cost
    scores = torch.eye(6).expand(1, 6, 6).clone()
    of_rows, of_columns = prices(scores)
    total = of_rows + of_columns
    torch.testing.assert_close(total.diagonal(dim1=1, dim2=2), torch.ones(1, 6), atol=1e-3, rtol=0)
    assert (scores <= total + 1e-6).all()


@pytest.mark.parametrize("with_prices", [False, True])
def test_equal_scores_still_give_a_permutation(with_prices):
    found = assign(torch.zeros(3, 9, 9), with_prices=with_prices)
    assert (found.sort(1).values == torch.arange(9)).all()


def test_padded_nodes_keep_to_themselves_and_leave_the_others_alone_with_prices_too():
    scores, mask = _scores(4, 12, signal=0.5), torch.arange(12).expand(4, -1) < 9
    forced = force_padding(scores.unsqueeze(1), mask).squeeze(1)
    found = assign(forced, with_prices=True)
    assert (found[:, 9:] == torch.arange(9, 12)).all()
    for one, columns in zip(scores[:, :9, :9].numpy(), found[:, :9].numpy(), strict=True):
        assert (scipy.optimize.linear_sum_assignment(one, maximize=True)[1] == columns).all()


def test_threads_change_nothing():
    scores = _scores(7, 30, signal=0.5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = assign(scores)
        torch.set_num_threads(3)
        assert torch.equal(assign(scores), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_processor_gives():
    scores = _scores(9, 64, signal=0.5)
    assert torch.equal(assign(scores.cuda()).cpu(), assign(scores))
