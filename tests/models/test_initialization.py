import torch
from torch import nn

from lvmmed.models.initialization import seeded


def _weights(generator):
    with seeded(generator):
        return nn.Linear(3, 4).weight.detach().clone()


def test_the_same_generator_state_gives_the_same_weights():
    first = _weights(torch.Generator().manual_seed(7))
    assert torch.equal(first, _weights(torch.Generator().manual_seed(7)))
    assert not torch.equal(first, _weights(torch.Generator().manual_seed(8)))


def test_two_draws_from_one_generator_differ(generator):
    assert not torch.equal(_weights(generator), _weights(generator))


def test_no_generator_means_seed_zero():
    assert torch.equal(_weights(None), _weights(None))


def test_the_global_generator_is_left_as_it_was(generator):
    before = torch.get_rng_state()
    _weights(generator)
    assert torch.equal(before, torch.get_rng_state())
