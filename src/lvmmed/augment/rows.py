"""Frozen dataclasses that hold tensors with one row an image: select rows, change device."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

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
    """Copy every tensor to a device.

    Copies to a GPU do not wait: from pinned memory they overlap with work on the host.
    """
    is_upload = torch.device(device).type == "cuda"
    return map_tensors(bundle, lambda tensor: tensor.to(device, non_blocking=is_upload))


def map_tensors(bundle: BundleT, function: Callable[[Tensor], Tensor]) -> BundleT:
    """Build the same dataclass with a function applied to every tensor in it; None stays None."""
    changed: dict[str, Any] = {}
    for field in fields(cast(Any, bundle)):
        value = getattr(bundle, field.name)
        if value is None:
            continue
        is_tensor = isinstance(value, Tensor)
        changed[field.name] = function(value) if is_tensor else map_tensors(value, function)
    return cast(BundleT, replace(cast(Any, bundle), **changed))
