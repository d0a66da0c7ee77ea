"""Row selection of nested dataclasses of tensors."""

from dataclasses import dataclass

import torch

from lvmmed.augment.rows import map_tensors, move, select_rows


@dataclass(frozen=True)
class Inner:
    values: torch.Tensor


@dataclass(frozen=True)
class Outer:
    inner: Inner
    values: torch.Tensor


def test_rows_are_taken_from_every_tensor_at_every_depth():
    bundle = Outer(Inner(torch.arange(4)), torch.arange(8).view(4, 2))
    part = select_rows(bundle, torch.tensor([3, 0]))
    assert part.inner.values.tolist() == [3, 0]
    assert part.values.tolist() == [[6, 7], [0, 1]]
    assert select_rows(bundle, slice(1, 2)).values.tolist() == [[2, 3]]
    assert bundle.inner.values.tolist() == [0, 1, 2, 3]


def test_a_function_reaches_every_tensor():
    doubled = map_tensors(Outer(Inner(torch.ones(1)), torch.ones(2)), lambda tensor: 2 * tensor)
    assert doubled.inner.values.tolist() == [2]
    assert doubled.values.tolist() == [2, 2]


def test_all_tensors_move():
    moved = move(Outer(Inner(torch.ones(1)), torch.ones(2)), "meta")
    assert moved.inner.values.device.type == moved.values.device.type == "meta"
