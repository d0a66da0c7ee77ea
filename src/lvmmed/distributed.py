"""Work shared by several processes: the only module that imports torch.distributed.

Without a process group (one process, no torchrun) every function does what a single rank would do,
so callers never ask. Gradients follow one convention: each rank holds the loss over its own rows,
the loss of the run is the mean over ranks, and `average_gradients` makes parameter gradients that
mean's. `all_reduce_sum` and `all_gather` carry gradients across ranks accordingly.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from lvmmed.types import InputError

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it gives up."""


def is_initialized() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 when alone."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if is_initialized():
        dist.barrier()


def local_slice(num_items: int) -> slice:
    """Rows of a global batch that belong to this rank: contiguous and equally many.

    Args:
        num_items: rows of the global batch, a multiple of the number of ranks.

    Returns:
        Start and stop within the global batch.

    Raises:
        ValueError: the rows do not divide evenly.
    """
    if num_items % world_size():
        raise ValueError(f"num_items: got {num_items}, need a multiple of {world_size()} ranks")
    share = num_items // world_size()
    return slice(rank() * share, (rank() + 1) * share)


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks; the gradient of the sum of all ranks' losses is again a sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        total = tensor.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone().contiguous()
        dist.all_reduce(total)
        return total


class _AllGather(torch.autograd.Function):
    """Concatenate over ranks; each rank gets back the gradients all ranks have for its rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.num_rows = tensor.shape[0]
        local = tensor.detach().contiguous()
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone().contiguous()
        dist.all_reduce(total)
        start = rank() * ctx.num_rows
        return total[start : start + ctx.num_rows]


def all_reduce_sum(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Sum a tensor of the same shape over all ranks.

    Args:
        tensor: this rank's share.

    Returns:
        The sum, the same on every rank; the input itself when alone. Its gradient is the sum of the
        gradients on all ranks.
    """
    if world_size() == 1:
        return tensor
    return _AllReduceSum.apply(tensor)  # type: ignore[no-any-return]


def all_reduce_mean(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Average a tensor of the same shape over all ranks, with gradients as `all_reduce_sum`."""
    return all_reduce_sum(tensor) / world_size()


def all_gather(tensor: Float[Tensor, "B *rest"]) -> Float[Tensor, "G *rest"]:
    """Concatenate a tensor of the same shape over all ranks, in order of rank.

    Args:
        tensor: this rank's rows.

    Returns:
        All rows, G = ranks x B, the same on every rank; the input itself when alone. The gradient
        of a row is the sum of the gradients that all ranks have for it.
    """
    if world_size() == 1:
        return tensor
    return _AllGather.apply(tensor)  # type: ignore[no-any-return]


def mean_and_var(
    rows: Float[Tensor, "B D"],
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and biased variance of every column over the rows of all ranks, differentiable.

    Two passes (mean first), so that a mean far from zero costs no digits.

    Args:
        rows: this rank's rows; ranks may hold different numbers of them.

    Returns:
        (mean, variance), the same on every rank.
    """
    count = all_reduce_sum(rows.new_full((), rows.shape[0]))
    mean = all_reduce_sum(rows.sum(0)) / count
    variance = all_reduce_sum((rows - mean).square().sum(0)) / count
    return mean, variance


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks, in one message per type of number.

    Parameters without a gradient are left out; that set is the same on all ranks.

    Args:
        parameters: in the same order on every rank.
    """
    if world_size() == 1:
        return
    buckets: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            buckets.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in buckets.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world_size()
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@contextmanager
def session(device_type: str = "cpu") -> Iterator[torch.device]:
    """Join the group that torchrun describes in the environment, and leave it at the end.

    More local ranks than GPUs are refused with an InputError.
    Alone (WORLD_SIZE absent or 1), or already in a group, nothing is started or torn down.

    Args:
        device_type: "cpu" (gloo), "cuda" or "cuda:N" (nccl).

    Yields:
        torch.device: this rank's; under torchrun and CUDA, the GPU of its local rank.
    """
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    device = torch.device(device_type)
    if is_alone or is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = _own_gpu()
    backend = "nccl" if device.type == "cuda" else "gloo"
    own = device if device.type == "cuda" else None
    dist.init_process_group(backend, timeout=TIMEOUT, device_id=own)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _own_gpu() -> torch.device:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"torchrun: local rank {local_rank} has no GPU, there are {torch.cuda.device_count()}; "
            "lower --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
