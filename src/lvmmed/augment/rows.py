"""Frozen dataclasses that hold tensors with one row an image: select rows, change device."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lvmmed.uploads import upload

BundleT = TypeVar("BundleT")


def select_rows(bundle: BundleT, rows: slice | Tensor) -> BundleT:
    """Take the same rows of every tensor.

    Args:
        bundle: dataclass of tensors (or of such dataclasses) with one row an image.
        rows: slice, or a vector of row numbers; a number alone would drop the row axis.

    Returns:
        A new dataclass of the same type.
    """
    return map_tensors(bundle, lambda tensor: tensor[rows])


def move(bundle: BundleT, device: torch.device | str) -> BundleT:
    """Copy every tensor to a device; copies to a GPU do not wait."""
    return map_tensors(bundle, lambda tensor: upload(tensor, device))


def map_tensors(bundle: BundleT, function: Callable[[Tensor], Tensor]) -> BundleT:
    """Build the same dataclass with a function applied to every tensor in it; all else stays."""
    changed: dict[str, Any] = {}
    for field in fields(cast(Any, bundle)):
        value = getattr(bundle, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif is_dataclass(value):
            changed[field.name] = map_tensors(value, function)
    return cast(BundleT, replace(cast(Any, bundle), **changed))
