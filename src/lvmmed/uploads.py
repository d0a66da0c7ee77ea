"""Copies from the processor to a GPU that wait for nothing."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def upload(values: Shaped[Tensor, "..."], device: torch.device | str) -> Shaped[Tensor, "..."]:
    """Copy a tensor to a device without waiting for what that has still to do.

    A driver may wait for its stream before it copies from pageable memory, whatever was asked for;
    so values of the processor go through pinned memory, which torch keeps until they are copied.

    Args:
        values: on any device.
        device: where they are wanted.

    Returns:
        The same values there; the tensor itself where it is there already.
    """
    target = torch.device(device)
    if target.type != "cuda":
        return values.to(target)
    if values.device.type == "cpu" and torch.cuda.is_available() and not values.is_pinned():
        values = values.pin_memory()
    return values.to(target, non_blocking=True)
