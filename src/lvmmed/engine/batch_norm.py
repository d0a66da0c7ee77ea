"""Batch normalisation whose statistics are those of the whole batch over all ranks.

Own code rather than torch's SyncBatchNorm, which needs CUDA: with this, W ranks compute what one
process computes on the joined batch, on a processor too.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lvmmed import distributed


class SharedBatchNorm(nn.Module):
    """Takes over the parameters, buffers and names of a batch normalisation.

    A fused activation (timm's BatchNormAct2d holds it as a child module) is taken over too and
    applied after the affine map. In evaluation it uses the running statistics as any other.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    momentum: float | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.momentum = norm.momentum
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in norm.named_children():
            self.add_module(name, child)

    def forward(self, images: Float[Tensor, "B D *spatial"]) -> Float[Tensor, "B D *spatial"]:
        """Normalise each channel; statistics in fp32 or better, the result in the input's type."""
        weight, bias = self.weight, self.bias
        if self.training:
            mean, variance, count = self._statistics(images)
            inverse = torch.rsqrt(variance + self.eps)
            result: Tensor = _Normalised.apply(images, weight, bias, mean, inverse, count)
        else:
            inverse = torch.rsqrt(self.running_var + self.eps)
            result = _normalised(images, weight, bias, self.running_mean, inverse)
        for child in self.children():
            result = child(result)
        return result

    @torch.no_grad()
    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of each channel over all ranks, and of how many values."""
        columns = _exact(images).transpose(0, 1).flatten(1)  # [D, B * positions]
        mean, variance = distributed.mean_and_var(columns.T)
        count = distributed.all_reduce_sum(mean.new_full((), columns.shape[1]))
        self._track(mean, variance, count)
        return mean, variance, count

    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics; the variance kept is the unbiased one, as torch does."""
        self.num_batches_tracked += 1
        weight = self.momentum
        if weight is None:  # only then: reading the counter waits for a GPU
            weight = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), weight)


class _Normalised(torch.autograd.Function):
    """`_normalised` by statistics of all ranks, on which the gradient depends too.

    Keeps the input as it is for the backward pass, as torch's own does, and not its steps in single
    precision, which take two and a half times the memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        inverse: Tensor,
        count: Tensor,
    ) -> Tensor:
        """Normalise [B, D, ...] by the mean and the inverse deviation of `count` values."""
        ctx.save_for_backward(images, weight, mean, inverse, count)
        ctx.has_bias = bias is not None
        return _normalised(images, weight, bias, mean, inverse)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Take from the gradient what goes back through mean and variance."""
        images, weight, mean, inverse, count = ctx.saved_tensors
        gradient, sides = _exact(incoming[0]), [0, *range(2, images.ndim)]
        unit = (_exact(images) - _columns(mean, images)) * _columns(inverse, images)
        sums = torch.stack([gradient.sum(sides), (gradient * unit).sum(sides)])
        of_bias, of_weight = sums
        if weight is not None:
            sums = sums * weight
        straight, along = distributed.all_reduce_sum(sums) / count
        scaled = gradient if weight is None else gradient * _columns(weight, images)
        scaled = scaled - _columns(straight, images) - unit * _columns(along, images)
        of_images = (scaled * _columns(inverse, images)).to(images.dtype)
        return (
            of_images,
            None if weight is None else of_weight,
            of_bias if ctx.has_bias else None,
            *[None] * 3,
        )


def _normalised(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor
) -> Tensor:
    """Normalise each channel in single precision or better; the result has the input's type."""
    scale = inverse if weight is None else inverse * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    exact = _exact(images) * _columns(scale, images) + _columns(shift, images)
    return exact.to(images.dtype)


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """Lay out a number a channel beside [B, D, ...]."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


def share_batch_norm(module: nn.Module) -> Any:
    """Replace every batch normalisation inside a module, in place; names and values stay.

    Args:
        module: any module; it may itself be a batch normalisation.

    Returns:
        The module, or its replacement.
    """
    if isinstance(module, _BatchNorm) and module.track_running_stats:
        return SharedBatchNorm(module).train(module.training)
    for name, child in module.named_children():
        replacement = share_batch_norm(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module
