"""Whether an encoder learns through the matching layer: the toy of `reference.toy_matching`.

Bounds are those of the acceptance tests; measured values stand beside them.
"""

import functools
import math

import pytest
from reference import toy_matching as toy

from lvmmed.matching.imle import matching_loss
from lvmmed.matching.solver import solve

EASY = {"nuisance": 1.5, "num_graphs": 16, "num_nodes": 10, "edge_weight": 0.5}
HARD = {"nuisance": 2.5, "num_graphs": 10, "num_nodes": 16, "edge_weight": 1.0, "num_steps": 300}


def evaluate(encoder, *, nuisance, num_nodes=64):
    def find(generator, *problem):
        return solve(*problem, restarts=4, iterations=20, generator=generator).permutation

    return toy.evaluate(encoder, find, nuisance=nuisance, num_nodes=num_nodes)


def train(margin, seed, **settings):
    def loss(generator, *problem):
        return matching_loss(
            *problem, noise=0.0, margin=margin, lambda_=math.inf, generator=generator
        ).loss

    return toy.train(loss, seed=seed, **settings)


@functools.cache
def trained(margin, seed, **settings):
    """(matched right, nearest right) among 64 fresh samples after training without noise."""
    return evaluate(train(margin, seed, **settings), nuisance=settings["nuisance"])


def test_a_few_steps_lift_an_encoder_far_above_an_untrained_one():
    before, _ = evaluate(toy.make_encoder(0), nuisance=1.5, num_nodes=32)
    after, _ = evaluate(train(2.0, 0, **EASY, num_steps=20), nuisance=1.5, num_nodes=32)
    assert before <= 0.25  # 0.12 to 0.14, three seeds
    assert after >= 0.8  # 0.96 to 0.98


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_hundred_steps_undo_a_moderate_nuisance(seed):
    matched, _ = trained(2.0, seed, **EASY, num_steps=100)
    assert matched >= 0.95  # 0.996 to 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_hundred_steps_undo_most_of_a_strong_nuisance(seed):
    _, nearest = trained(2.0, seed, **HARD)
    assert nearest >= 0.94  # 0.957 to 0.973


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_margin_and_noise_the_encoder_learns_less(seed):
    # once the small graphs of training match, nothing is left to learn from
    with_margin, without = trained(2.0, seed, **HARD), trained(0.0, seed, **HARD)
    assert without[0] <= with_margin[0] - 0.15  # 0.65 to 0.69 against 0.89 to 0.94
    assert without[1] <= with_margin[1] - 0.08  # 0.81 to 0.84 against 0.96 to 0.97
