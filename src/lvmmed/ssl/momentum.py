"""Teachers: copies of an encoder and its head that follow them by a moving average."""

import copy
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvmmed.augment.views import Views
from lvmmed.models.backbones import Backbone, Features
from lvmmed.ssl.method import buffers_left_alone, encode_views


def cosine_momentum(step: int, *, num_steps: int, start: float) -> float:
    """Momentum that rises from `start` to 1 along half a cosine.

    1 - (1 - start) * (cos(pi * step / num_steps) + 1) / 2.

    Args:
        step: number of the step, from 0.
        num_steps: length of the run.
        start: momentum of step 0.

    Returns:
        A number from `start` to 1; it would reach 1 one step after the last.

    Source:
        Grill et al. 2020 (BYOL), section 3.2; Caron et al. 2021 (DINO) take it over.
    """
    return 1 - (1 - start) * (math.cos(math.pi * step / num_steps) + 1) / 2


class Teacher(nn.Module):
    """A copy of an encoder and its head that no gradient trains.

    Only `follow` changes it: normalisation uses the batch at hand, as the student's does, and the
    running statistics that a forward pass would move are left alone, so that a loss can be computed
    twice and diagnostics leave no trace. Dropout and stochastic depth, which some encoders come
    with, are off, so that targets are those of the whole network.

    Args:
        backbone: what is copied; the copy starts equal.
        head: what is copied with it.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.head = copy.deepcopy(head)
        self.requires_grad_(False)
        self.train(backbone.training)

    def train(self, mode: bool = True) -> "Teacher":
        """Switch batch normalisation to training (`mode`) or evaluation, where all else stays.

        Args:
            mode: as in torch; statistics that the encoder keeps frozen stay frozen.

        Returns:
            The teacher.
        """
        super().train(mode)
        for module in self.modules():
            if not isinstance(getattr(module, "running_mean", None), Tensor):
                module.training = False
        return self

    @torch.no_grad()
    def encode(self, views: list[Views]) -> list[Features]:
        """Encode views as the student does, those of one size in one call.

        Args:
            views: in any number.

        Returns:
            Features of each view, in order, without gradient.
        """
        with buffers_left_alone(self.backbone):
            return encode_views(self.backbone, views)

    @torch.no_grad()
    def project(self, views: list[Views]) -> list[Float[Tensor, "B F"]]:
        """Encode views and apply the head in fp32.

        Args:
            views: in any number, of as many images each.

        Returns:
            What the head makes of each view, in order, without gradient. Views pass the head one
            at a time: a batch normalisation in it sees one view of the images.
        """
        features = self.encode(views)
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            return [self.head(one.pooled.float()) for one in features]

    @torch.no_grad()
    def follow(self, backbone: Backbone, head: nn.Module, *, momentum: float) -> None:
        """Move every parameter and running statistic: teacher = m * teacher + (1 - m) * student.

        Counters (whole numbers) are copied.

        Args:
            backbone: the student's.
            head: the student's.
            momentum: m above; 1 changes nothing, 0 copies.
        """
        for own, students in ((self.backbone, backbone), (self.head, head)):
            _move(own.parameters(), students.parameters(), momentum=momentum)
            _move(own.buffers(), students.buffers(), momentum=momentum)


def _move(own: Iterable[Tensor], students: Iterable[Tensor], *, momentum: float) -> None:
    for mine, theirs in zip(own, students, strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - momentum)
        else:
            mine.copy_(theirs)
