"""Where the positions of a feature map lie in the image.

A position is no equal cell of the image: a convolution of stride 2 that is padded on both sides is
centred on every second pixel, not between two. After five of them a position of a ResNet lies half
a cell to the left and above the middle of its cell, and in a mirrored view to the right of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvmmed.models.backbones import Backbone


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """A layer that makes a map smaller, along one side."""

    before: int
    after: int
    kernel: int
    stride: int
    padding: int


def position_shares(backbone: Backbone, size_px: int) -> tuple[float, ...]:
    """Centres of the positions of a map along one side of a view, as shares of that side.

    Followed through the layers that make maps smaller; where two stand side by side (a shortcut),
    their mean counts; those within an attention, which shrink what it looks at, do not. Layers of
    stride 1 are taken as centred. Where positions are merged by other
    means (windowed transformers), they are middles of equal cells. That the image ends, which draws
    what border positions see inwards, is left out of account.

    Args:
        backbone: on any device; left as it is.
        size_px: side of the views.

    Returns:
        As many rising numbers in 0..1 as the map has columns; middles of equal cells where
        nothing is known.
    """
    steps: list[_Step] = []
    device = next(backbone.parameters()).device
    with _watched(backbone, steps), torch.no_grad():
        side = backbone(torch.zeros(1, 3, size_px, size_px, device=device)).map.shape[-1]
    places, size = torch.arange(side, dtype=torch.float64, device="cpu"), side
    while size < size_px:
        found = [step for step in steps if step.after == size and step.before > size]
        if found:
            before = min(step.before for step in found)
            beside = [step for step in found if step.before == before]
            offset = sum((step.kernel - 1) / 2 - step.padding for step in beside) / len(beside)
            places, size = beside[0].stride * places + offset, before
        else:
            larger = min([one.after for one in steps if one.after > size], default=size_px)
            places = (places + 0.5) * larger / size - 0.5
            size = larger
    return tuple(((places + 0.5) / size_px).clamp(0, 1).tolist())


@contextmanager
def _watched(backbone: Backbone, steps: list[_Step]) -> Iterator[None]:
    """Note the layers that make maps smaller, in evaluation mode."""
    was_training = backbone.training
    handles = [
        module.register_forward_hook(lambda *call: _note(steps, *call))
        for name, module in backbone.named_modules()
        if hasattr(module, "kernel_size")
        and hasattr(module, "stride")
        and "attn" not in name.split(".")
    ]
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was_training)
        for handle in handles:
            handle.remove()


def _note(steps: list[_Step], module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    given = inputs[0] if inputs else None
    if not (isinstance(given, Tensor) and isinstance(output, Tensor) and output.ndim == 4):
        return
    before, after = given.shape[-1], output.shape[-1]
    if after >= before:
        return
    kernel, stride, padding, dilation = (
        _last(getattr(module, name, default))
        for name, default in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    )
    reach = dilation * (kernel - 1) + 1
    if (before + 2 * padding - reach) // stride + 1 != after:  # padded by need, more on the right
        padding = max((after - 1) * stride + reach - before, 0) // 2
    steps.append(_Step(before=before, after=after, kernel=reach, stride=stride, padding=padding))


def _last(value: Any) -> int:
    if isinstance(value, str):
        return 0
    return int(value[-1] if isinstance(value, tuple | list) else value)
