"""Where a run computes, and in which arithmetic."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lvmmed.types import InputError


def choose_device(name: str) -> torch.device:
    """Turn the setting `train.device` into a device.

    Args:
        name: "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:N".

    Returns:
        A device that exists.

    Raises:
        InputError: another name, or a GPU that is not there.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    kind, _, index = name.partition(":")
    is_known = name == "cpu" or (kind == "cuda" and (name == "cuda" or index.isdecimal()))
    if not is_known:
        raise InputError(f"train.device: got {name!r}, allowed are auto, cpu, cuda and cuda:N")
    num_gpus = torch.cuda.device_count() if has_gpu else 0
    if kind == "cuda" and int(index or 0) >= num_gpus:
        raise InputError(
            f"train.device: got {name!r}, but there are {num_gpus} GPUs; use auto or cpu"
        )
    return torch.device(name)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether an encoder runs in bf16: asked for, or "auto" on a GPU that has it.

    Args:
        precision: "auto", "fp32" or "bf16".
        device: where it runs.

    Returns:
        False on a processor unless "bf16" was asked for.

    Raises:
        InputError: "bf16" on a GPU without it.
    """
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if precision == "bf16" and not has_bf16:
        raise InputError("train.precision: got 'bf16', which this GPU lacks; use fp32")
    return precision == "bf16" or (precision == "auto" and device.type == "cuda" and has_bf16)


@contextmanager
def determinism(is_wanted: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside the block, and undo that at its end."""
    was_on = torch.are_deterministic_algorithms_enabled()
    if is_wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_wanted or was_on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)
