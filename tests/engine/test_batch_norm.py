"""Alone, shared batch normalisation must equal torch's own; tests/test_distributed.py has two."""

import pytest
import timm
import torch
from reference.fake_gpu import NoCopies, move_to_fake_gpu
from torch._subclasses.fake_tensor import FakeTensorMode

from lvmmed.engine.batch_norm import share_batch_norm


def close(norm, shared, images):
    first = images.clone().requires_grad_()
    second = images.clone().requires_grad_()
    expected, found = norm(first), shared(second)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_outputs_gradients_and_statistics_are_those_of_torch(generator, momentum, affine):
    norm, twin = (torch.nn.BatchNorm2d(3, momentum=momentum, affine=affine) for _ in range(2))
    shared = share_batch_norm(twin)
    assert list(shared.state_dict()) == list(norm.state_dict())
    for _ in range(2):
        close(norm, shared, torch.randn(4, 3, 5, 5, generator=generator) + 2)
    torch.testing.assert_close(dict(shared.named_buffers()), dict(norm.named_buffers()))
    close(norm.eval(), shared.eval(), torch.randn(4, 3, 5, 5, generator=generator))


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0"])
def test_a_whole_encoder_keeps_its_names_and_outputs(generator, name):
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0).double()
    names = list(encoder.state_dict())
    images = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
    expected = encoder.train()(images).detach()
    shared = share_batch_norm(encoder)
    assert sorted(shared.state_dict()) == sorted(names)
    assert not any(type(m).__name__.startswith("BatchNorm") for m in shared.modules())
    torch.testing.assert_close(shared(images), expected)


def test_rows_without_positions_are_normalised_too(generator):
    norm, twin = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    close(norm, share_batch_norm(twin), torch.randn(6, 4, generator=generator))


def test_training_on_a_gpu_does_not_wait():
    norm = share_batch_norm(torch.nn.BatchNorm2d(4))
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_fake_gpu(norm)
        with NoCopies(allows_uploads=True):
            assert norm(torch.empty(2, 4, 3, 3, device="cuda")).shape == (2, 4, 3, 3)


def test_the_backward_pass_keeps_the_input_and_no_copy_in_single_precision(generator):
    shared = share_batch_norm(torch.nn.BatchNorm2d(4))
    images = torch.randn(4, 4, 16, 16, generator=generator).bfloat16().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        shared(images)
    assert [one.dtype for one in kept if one.numel() == images.numel()] == [torch.bfloat16]
