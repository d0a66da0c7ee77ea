"""The layer's mean gradient is that of the perturbed Fenchel-Young loss, checked by Monte Carlo.

The loss is E max <theta + noise, v> - <theta, v*> and its gradient E[v] - v*. Graphs have three
nodes, so the maximum is taken over all permutations.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from reference import matching_search as slow
from reference.matching_instances import gumbel, instances

from lvmmed.matching.imle import matching_loss

NUM_SAMPLES, SCALE = 4000, 0.4


def draw_noise(one, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: gumbel((NUM_SAMPLES, *part.shape[1:]), generator)
        for name, part in zip(("vertex_noise", "edge_noise"), one, strict=False)
    }


def mean_gradient(one, *, margin, seed):
    """What the layer gives at vertices and edges, averaged over draws of noise."""
    many = [part.expand(NUM_SAMPLES, *part.shape[1:]).contiguous() for part in one]
    vertex, edge = (part.requires_grad_() for part in many[:2])
    loss = matching_loss(
        vertex,
        edge,
        *many[2:],
        noise=SCALE,
        margin=margin,
        lambda_=math.inf,
        reduction="graph",
        **draw_noise(one, seed),
    ).loss
    parts = torch.autograd.grad(loss, (vertex, edge))
    return torch.cat([part.sum(0).flatten() for part in parts]).numpy()


def differences_of_expected_maximum(one, *, margin, seed):
    """Central differences of E max <theta + noise - margin at true pairs, v> - <theta, v*>.

    The maximum is taken over all 6 permutations of 3 nodes.
    """
    step = 1e-5
    noise = draw_noise(one, seed).values()
    drawn = SCALE * np.concatenate([part.flatten(1).numpy() for part in noise], 1)
    ends = (one[2][0].numpy(), one[3][0].numpy())
    features = np.stack(
        [
            np.concatenate([part.ravel() for part in slow.indicator(np.array(p), *ends)])
            for p in itertools.permutations(range(3))
        ]
    )  # [6, 9 + 36]
    theta = np.concatenate([one[0].numpy().ravel(), one[1].numpy().ravel()])
    true = features[0]  # permutations start with the identity
    margins = np.concatenate([margin * np.eye(3).ravel(), np.zeros(36)])

    def fenchel_young(at):
        return ((at - margins + drawn) @ features.T).max(1).mean() - at @ true

    return np.array(
        [
            (fenchel_young(theta + step * unit) - fenchel_young(theta - step * unit)) / (2 * step)
            for unit in np.eye(theta.size)
        ]
    )


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_the_mean_gradient_is_that_of_the_expected_maximum(margin):
    # perturbed Fenchel-Young loss: its gradient is E[v] - v*; the same noise on both sides
    one = instances(1, 3, k=2, signal=0.3, noise=0.0, seed=8)
    found = mean_gradient(one, margin=margin, seed=1)
    expected = differences_of_expected_maximum(one, margin=margin, seed=1)
    np.testing.assert_allclose(found, expected, atol=2 / NUM_SAMPLES)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_the_mean_gradient_is_that_of_the_expected_maximum_of_other_noise(margin):
    one = instances(1, 3, k=2, signal=0.3, noise=0.0, seed=8)
    found = mean_gradient(one, margin=margin, seed=1)
    expected = differences_of_expected_maximum(one, margin=margin, seed=2)
    # an entry of v - v* is a share p of draws, or p - 1; both sides are means of so many draws
    share = np.abs(expected)
    error = np.sqrt(2 * (share * (1 - share) + 1e-3) / NUM_SAMPLES)
    assert (np.abs(found - expected) < 4 * error).all()
    assert error.max() < 0.02  # a tolerance that means something
    # the other margin is outside of it
    other = mean_gradient(one, margin=1.0 - margin, seed=1)
    assert (np.abs(other - expected) > 4 * error).any()
