"""Encoding several views: expected values are those of one plain call of the encoder a size."""

import pytest
import torch
from reference.ssl_batches import make_views, small_backbone

from lvmmed.engine.batch_norm import share_batch_norm
from lvmmed.ssl.method import buffers_left_alone, encode_views

NUM = 8
KINDS = {"torch": lambda encoder: encoder, "shared": share_batch_norm}
"""Batch normalisation as torch has it, and as several processes do."""

every_kind = pytest.mark.parametrize("kind", KINDS)


def _twins(kind):
    """Two equal encoders in training, and two full views and two small crops of eight images."""
    encoders = [KINDS[kind](small_backbone()) for _ in range(2)]
    return *encoders, list(make_views(NUM, num_small=2))


def _joined(views):
    images = torch.cat([view.images for view in views])
    return images.contiguous(memory_format=torch.channels_last)  # or the last digits differ


def _buffers(encoder):
    return {name: value.clone() for name, value in encoder.named_buffers()}


@every_kind
@pytest.mark.parametrize("is_small_first", [False, True])
def test_running_statistics_are_those_of_full_views_whatever_the_order(kind, is_small_first):
    encoder, twin, views = _twins(kind)
    start = _buffers(encoder)
    twin(_joined(views[:2]))
    encode_views(encoder, views[::-1] if is_small_first else views)
    moved, expected = _buffers(encoder), _buffers(twin)
    assert all(not torch.equal(moved[name], start[name]) for name in start)
    order = {"rtol": 1e-4, "atol": 1e-5} if is_small_first else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(moved, expected, **order)  # sums in another order


@every_kind
def test_small_crops_are_normalised_by_their_own_batch_and_give_gradients(kind):
    encoder, twin, views = _twins(kind)
    features = encode_views(encoder, views)
    expected = torch.cat([twin(_joined(part)).pooled for part in (views[:2], views[2:])])
    found = torch.cat([one.pooled for one in features])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for pooled in (found, expected):
        pooled.square().sum().backward()
    trained = [(a, b) for a, b in zip(encoder.parameters(), twin.parameters(), strict=True)]
    assert all((a.grad is None) == (b.grad is None) for a, b in trained)
    for a, b in trained:
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_views_of_one_size_all_move_running_statistics():
    encoder, twin, views = _twins("torch")
    twin(_joined(views[2:]))
    encode_views(encoder, views[2:])
    torch.testing.assert_close(_buffers(encoder), _buffers(twin), rtol=0, atol=0)


def test_frozen_statistics_stay_and_are_what_small_crops_are_normalised_by():
    encoder, twin, views = _twins("torch")
    encoder.has_frozen_batch_norm = True
    encoder.train()
    start = _buffers(encoder)
    features = encode_views(encoder, views)
    torch.testing.assert_close(_buffers(encoder), start, rtol=0, atol=0)
    expected = twin.eval()(views[2].images).pooled
    torch.testing.assert_close(features[2].pooled, expected, rtol=1e-4, atol=1e-5)


def test_buffers_are_put_back_as_they_are_after_an_error():
    norm = torch.nn.BatchNorm2d(3)
    mean = norm.running_mean
    with pytest.raises(ValueError, match="expected 4D"), buffers_left_alone(norm):
        norm(norm(torch.ones(2, 3, 4, 4))[0])
    assert norm.running_mean is mean
    assert not mean.any()
    assert list(norm.state_dict()) == list(torch.nn.BatchNorm2d(3).state_dict())
