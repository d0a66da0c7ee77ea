"""The contract of a self-supervised method."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvmmed.augment.views import Views
from lvmmed.models.backbones import Backbone, Features


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What is known of a run before anything is loaded.

    Attributes:
        backbone: name of the encoder.
        size_px: side of a full view in pixels.
        batch_size: images a step over all ranks.
        num_images: images that are trained on.
        steps_per_epoch: whole steps that a pass over them touches.
        num_steps: length of the run.
        num_small_crops: small crops of each image.
        num_ranks: processes.
    """

    backbone: str
    size_px: int
    batch_size: int
    num_images: int
    steps_per_epoch: int
    num_steps: int
    num_small_crops: int = 0
    num_ranks: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodContext:
    """What a method is built from, beside its configuration.

    Attributes:
        backbone: the encoder before the first step, on the CPU; a method may copy it (teachers),
            and must not keep it.
        facts: of the run.
        generator: source of the weights of heads.
    """

    backbone: Backbone
    facts: RunFacts
    generator: torch.Generator | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """What a method makes of one step.

    Attributes:
        total: what is minimised, in fp32. With several processes it is the loss over this
            process's images, so that the mean over processes is the loss of the joined batch.
        terms: parts that `total` is the sum of, without gradient.
        metrics: further figures of the step, scalars without gradient.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def encode_views(backbone: Backbone, views: list[Views]) -> list[Features]:
    """Encode views of one size in one call each, so that batch normalisation sees them together.

    Only the largest views, which are what whole images look like, move running statistics: small
    crops, encoded last, would else make up most of what the encoder normalises by in evaluation.

    Args:
        backbone: the encoder.
        views: in any number; those of one size need not stand side by side.

    Returns:
        Features of each view, in order.
    """
    features: dict[int, Features] = {}
    sizes = [view.images.shape[-1] for view in views]
    for size in dict.fromkeys(sizes):
        places = [i for i, one in enumerate(sizes) if one == size]
        images = torch.cat([views[place].images for place in places])
        with nullcontext() if size == max(sizes) else buffers_left_alone(backbone):
            encoded = backbone(images.contiguous(memory_format=torch.channels_last))
        lengths = [len(views[place]) for place in places]
        parts = zip(encoded.map.split(lengths), encoded.pooled.split(lengths), strict=True)
        for place, (feature_map, pooled) in zip(places, parts, strict=True):
            features[place] = Features(map=feature_map, pooled=pooled, is_half=encoded.is_half)
    return [features[place] for place in range(len(views))]


@contextmanager
def buffers_left_alone(module: nn.Module) -> Iterator[None]:
    """Let what is called meanwhile move copies of a module's buffers, such as running statistics.

    The buffers themselves are set aside and put back: to write their old values into them would
    spoil the gradient, as torch's batch normalisation keeps them for its backward pass.

    Args:
        module: whose buffers, and those of the modules inside.
    """
    kept = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    try:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer.clone())
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)


class Method(nn.Module, ABC):
    """Heads, teachers and queues of a self-supervised method; the backbone is not part of it.

    Whatever a method carries from step to step lies in its `state_dict`. All its calls may run
    under autocast (bf16); losses are computed in fp32 all the same.
    """

    @abstractmethod
    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,
    ) -> LossOutput:
        """Compute the loss of one step.

        Args:
            views: two full views of the same images first, then small crops if the method asks
                for them.
            features: of each view, as `encode` gave them.
            step: number of the step, from 0.
            generator: for everything random; in the same state on all processes.

        Returns:
            The loss with its parts and figures.
        """

    @abstractmethod
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Judge the step by figures that are too dear for each one; no gradient, no side effect.

        Args:
            views: as for `training_loss`.
            features: as for `training_loss`.
            step: number of the step, from 0.
            generator: for everything random.

        Returns:
            Figures by name, those of `metrics.jsonl`; empty if the batch is too small for any.
        """

    def encode(
        self,
        backbone: Backbone,
        views: list[Views],
        *,
        generator: torch.Generator,  # noqa: ARG002
    ) -> list[Features]:
        """Encode the views of a step; masked-image methods encode a part of each image instead.

        Args:
            backbone: the encoder that is trained.
            views: as for `training_loss`.
            generator: for what is random about it (masks); in the same state on all processes.

        Returns:
            Features of each view that the method uses, in order.
        """
        return encode_views(backbone, views)

    def after_step(self, step: int, backbone: Backbone) -> None:
        """Update teachers and queues after the optimiser's step; nothing by default.

        Args:
            step: number of the step that was taken.
            backbone: the encoder after it.
        """

    def remember(self, views: list[Views], features: list[Features]) -> None:
        """Take in images before the first step, where the table of methods asks for it.

        The loop goes once over all images that are trained on, without gradient.

        Args:
            views: two views of some images, with their `image_index`; this process's share.
            features: of both views.
        """
