"""Where a run computes, and in which arithmetic."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lvmmed.types import InputError

BF16_CAPABILITY = 8
"""Compute capability of the first NVIDIA GPUs with bf16 (Ampere)."""

# cuBLAS reads it at its first product of a process, so a later run that asks for determinism would
# come too late; it is the size that a large GPU takes anyway
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


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

    A processor without kernels for bf16 runs in fp32 and warns: it would emulate bf16, which took
    ten times as long as fp32 (ResNet-10t at 48 px, AVX2).

    Args:
        precision: "auto", "fp32" or "bf16".
        device: where it runs.

    Returns:
        False on a processor unless "bf16" was asked for and it has that.

    Raises:
        InputError: "bf16" on a GPU without it.
    """
    if device.type != "cpu":
        has_bf16 = gpu_has_bf16(device)
        if precision == "bf16" and not has_bf16:
            raise InputError("train.precision: got 'bf16', which this GPU lacks; use fp32")
        return has_bf16 and precision in ("auto", "bf16")
    if precision == "bf16" and not processor_has_bf16():
        warnings.warn(
            "train.precision: got 'bf16', which this processor lacks; runs in fp32",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return precision == "bf16"


def gpu_has_bf16(device: torch.device) -> bool:
    """Whether a GPU computes in bf16; `torch.cuda.is_bf16_supported` counts emulation too."""
    major, _ = torch.cuda.get_device_capability(device)
    return major >= BF16_CAPABILITY


def processor_has_bf16() -> bool:
    """Whether oneDNN, which computes convolutions here, has kernels for bf16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def determinism(is_wanted: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside the block, and undo that at its end.

    Args:
        is_wanted: `train.deterministic`.

    Yields:
        Once.

    Raises:
        InputError: the block needs an operation for which torch has no such algorithm.
    """
    was_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(is_wanted or was_on)
    try:
        yield
    except RuntimeError as error:
        if is_wanted and "does not have a deterministic implementation" in str(error):
            operation = str(error).split()[0]
            raise InputError(
                f"train.deterministic: torch has no deterministic {operation}, which this run "
                "needs; set it to false"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(was_on)
