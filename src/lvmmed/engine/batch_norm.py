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
        exact = images.to(torch.promote_types(images.dtype, torch.float32))
        columns = exact.transpose(0, 1).flatten(1)  # [D, B * positions]
        if self.training:
            mean, variance = distributed.mean_and_var(columns.T)
            self._track(mean.detach(), variance.detach(), columns.shape[1])
        else:
            mean, variance = self.running_mean, self.running_var
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1, *([1] * (images.ndim - 2)))
        result = (exact * scale.view(shape) + shift.view(shape)).to(images.dtype)
        for child in self.children():
            result = child(result)
        return result

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, num_local: int) -> None:
        """Move the running statistics; the variance kept is the unbiased one, as torch does."""
        count = distributed.all_reduce_sum(mean.new_full((), num_local))
        self.num_batches_tracked += 1
        weight = self.momentum
        if weight is None:  # only then: reading the counter waits for a GPU
            weight = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), weight)


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
