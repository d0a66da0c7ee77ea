"""MoCo v2: contrast a view with those that a slowly moving encoder saw in the last steps.

Letters used in shapes:
    B: images of this process.
    F: features of a projection.
    K: keys in the queue.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.distributed import all_gather
from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.heads import Projector
from lvmmed.ssl.figures import partner_accuracy, teacher_agreement
from lvmmed.ssl.losses import ContrastiveLoss
from lvmmed.ssl.method import LossOutput, Method, MethodContext, RunFacts, encode_views
from lvmmed.ssl.momentum import Teacher
from lvmmed.types import InputError

UNKNOWN = -1
"""Number of an image whose number is not known."""


class MocoConfig(MethodConfig):
    """Fields of MoCo v2."""

    name: Literal["moco"] = "moco"
    """Row of the table of methods."""
    queue_length: int = Field(4096, ge=1)
    """Keys to tell from; whole steps, at most one an image (paper 65536, of 1.3 million images)."""
    temperature: float = Field(0.2, gt=0)
    """Divides cosines (Chen et al. 2020; 0.07 in He et al. 2019)."""
    momentum: float = Field(0.999, ge=0, le=1)
    """Of the moving average that makes the key encoder (He et al. 2019)."""
    symmetric: bool = False
    """Let each view be query and key, for twice the encoding; off in the papers."""
    projection_width: int = Field(128, ge=1)
    """Length of the vectors that are compared (He et al. 2019)."""
    projector_hidden_layers: int = Field(1, ge=0)
    """Hidden layers (linear, relu); 1 is MoCo v2, 0 is MoCo v1."""
    projector_hidden_width: int = Field(2048, ge=1)
    """Width of the hidden layers (Chen et al. 2020)."""


def check_moco(config: MocoConfig, facts: RunFacts) -> None:
    """Refuse a queue of broken steps, one that never fills, and one longer than the images.

    Args:
        config: of the method.
        facts: of the run.

    Raises:
        InputError: the length is no multiple of the keys of a step, more than the keys of the
            whole run, or more than those of one pass over the images.
    """
    per_image = 2 if config.symmetric else 1
    per_step = facts.batch_size * per_image
    length = config.queue_length
    if length % per_step:
        below = length - length % per_step
        nearest = f"{below} or {below + per_step}" if below else f"{per_step}"
        keys = "2 x train.batch_size" if config.symmetric else "train.batch_size"
        raise InputError(
            f"method.queue_length: got {length}, need a multiple of the {per_step} keys of a step "
            f"({keys}); take {nearest}, or another train.batch_size"
        )
    num_keys = facts.num_steps * per_step
    num_distinct = facts.num_images * per_image
    longest = min(num_keys, num_distinct - num_distinct % per_step)
    if length > num_keys:
        raise InputError(
            f"method.queue_length: got {length}, need at most the {num_keys} keys of the whole run "
            f"({facts.num_steps} steps of {per_step}), or it is never full; set it to {longest} "
            "or less, or train longer"
        )
    if length > num_distinct:
        raise InputError(
            f"method.queue_length: got {length}, need at most the {num_distinct} keys of one pass "
            f"over the {facts.num_images} images that are trained on, as further ones are older "
            f"keys of the same images; set method.queue_length={longest} or less, or prepare more "
            "images"
        )


def queue_contrast(
    queries: Float[Tensor, "B F"],
    keys: Float[Tensor, "B F"],
    queue: Float[Tensor, "K F"],
    *,
    is_negative: Bool[Tensor, "B K"],
    temperature: float,
) -> ContrastiveLoss:
    """Tell the key of each query from keys in the queue (InfoNCE).

    loss = mean over i of -log( exp(q_i.k_i / t) / (exp(q_i.k_i / t) + sum over the negatives j of
    i of exp(q_i.n_j / t)) ) with queries q, keys k and queue n scaled to length 1.

    Args:
        queries: of this process's images; need not be normalised, a zero vector has cosine 0.
        keys: of other views of the same images, in the same order.
        queue: keys of earlier steps.
        is_negative: which of them each query is told from.
        temperature: t above.

    Returns:
        Loss and accuracy in fp32 (fp64 for fp64 inputs); a key that is only as near as a negative
        is not told apart. A query without negatives has loss 0 and counts as told apart.

    Source:
        He et al. 2019, equation 1.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    unit_q, unit_k, unit_n = (
        functional.normalize(one.to(dtype), dim=1) for one in (queries, keys, queue)
    )
    positive = (unit_q * unit_k).sum(1, keepdim=True)  # [B, 1]
    negative = (unit_q @ unit_n.T).masked_fill(~is_negative, float("-inf"))  # [B, K]
    logits = torch.cat([positive, negative], dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    accuracy = (positive > negative).all(1).to(dtype).mean()
    return ContrastiveLoss(
        loss=functional.cross_entropy(logits, target), accuracy=accuracy.detach()
    )


class Moco(Method):
    """Tell the other view of an image from a queue of views of other images.

    The query comes from the encoder, its key from a copy that follows by a moving average; keys of
    the last steps wait in a queue, so that there are many negatives whatever the batch.

    Differs from the papers in: older keys of a query's own image are no negatives of it (the queue
    straddles epochs, and small stores bring an image back while its key still waits); the queue
    starts empty, so that the loss of the first step is 0 (the authors' code starts with random
    vectors, which are told apart with ease); keys are not shuffled among GPUs. Shuffling keeps a
    query and its key from sharing batch statistics, which would mark the key; here the statistics
    are those of the whole batch, on one process as on many, and a shuffle would change nothing. So
    a key is marked by its batch (and age), the queue's keys by others, the less the larger the
    batch: a `queue_accuracy` above the `partner_accuracy`, which compares within the batch, shows
    it.
    """

    keys: Float[Tensor, "K F"]
    key_images: Int64[Tensor, " K"]
    num_enqueued: Int64[Tensor, ""]

    def __init__(self, config: MocoConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.projector = Projector(
            context.backbone.width,
            config.projection_width,
            num_hidden=config.projector_hidden_layers,
            hidden_width=config.projector_hidden_width,
            hidden_norm=False,
            generator=context.generator,
        )
        self.teacher = Teacher(context.backbone, self.projector)
        length = config.queue_length
        self.register_buffer("keys", torch.zeros(length, config.projection_width))
        self.register_buffer("key_images", torch.full((length,), UNKNOWN))
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.long))
        self._new_keys: list[Tensor] = []
        self._new_images: list[Tensor] = []

    def encode(
        self,
        backbone: Backbone,
        views: list[Views],
        *,
        generator: torch.Generator,  # noqa: ARG002
    ) -> list[Features]:
        """Encode the views that are queries: the first one, or both if the loss is symmetric.

        Args:
            backbone: the encoder that is trained.
            views: two views.
            generator: not used.

        Returns:
            Features of each query view.
        """
        return encode_views(backbone, views[: 2 if self.config.symmetric else 1])

    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Contrast queries with their keys and the queue; keys join it in `after_step` only.

        Args:
            views: two views; keys are made of the second one, or of both. Where their
                `image_index` is None, nothing tells a query's own keys in the queue.
            features: of the query views, as `encode` gave them.
            step: not used.
            generator: not used, nothing is random.

        Returns:
            The InfoNCE loss, a mean over both directions if it is symmetric. `queue_accuracy` is
            the share of queries whose key is nearer than any other image's in the queue.
        """
        queries, keys = self._project(views, features)
        images = _image_numbers(views[0])
        is_negative = self._negatives(images)
        with torch.autocast(self.keys.device.type, enabled=False):
            results = [
                queue_contrast(
                    query,
                    key,
                    self.keys,
                    is_negative=is_negative,
                    temperature=self.config.temperature,
                )
                for query, key in zip(queries, keys, strict=True)
            ]
        self._new_keys, self._new_images = keys, [images] * len(keys)
        loss = torch.stack([one.loss for one in results]).mean()
        return LossOutput(
            total=loss,
            terms={"contrast_loss": loss.detach()},
            metrics={"queue_accuracy": torch.stack([one.accuracy for one in results]).mean()},
        )

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge how well images are told apart within the batch.

        Args:
            views: as for `training_loss`.
            features: as for `training_loss`.
            step: not used.
            generator: not used.

        Returns:
            partner_accuracy: share of images whose key is the nearest of all keys of the batch.
            teacher_agreement: mean cosine of queries and their keys; near 1 with a
                partner_accuracy at chance is collapse.
            queue_filled: share of the queue that holds keys of images.
        """
        queries, keys = self._project(views, features)
        filled = min(int(self.num_enqueued), len(self.keys)) / len(self.keys)
        return {
            "partner_accuracy": float(partner_accuracy(queries[0], keys[0])),
            "teacher_agreement": float(teacher_agreement(queries, keys)),
            "queue_filled": filled,
        }

    @torch.no_grad()
    def after_step(self, step: int, backbone: Backbone) -> None:  # noqa: ARG002
        """Move the key encoder, and replace the oldest keys by those of the step.

        Args:
            step: not used.
            backbone: the encoder after the step.
        """
        self.teacher.follow(backbone, self.projector, momentum=self.config.momentum)
        if self._new_keys:
            new = torch.cat([all_gather(keys) for keys in self._new_keys])
            places = (self.num_enqueued + torch.arange(len(new), device=new.device)) % len(
                self.keys
            )
            self.keys[places] = functional.normalize(new, dim=1)
            self.key_images[places] = torch.cat(
                [all_gather(images.double()).long() for images in self._new_images]
            )
            self.num_enqueued += len(new)
            self._new_keys, self._new_images = [], []

    def _negatives(self, images: Int64[Tensor, " B"]) -> Bool[Tensor, "B K"]:
        """Which keys of the queue are of other images: enqueued ones, own ones left out."""
        is_enqueued = torch.arange(len(self.keys), device=images.device) < self.num_enqueued
        own = images.unsqueeze(1)  # [B, 1]
        is_own = (own == self.key_images) & (own != UNKNOWN)
        return is_enqueued & ~is_own

    def _project(
        self, views: list[Views], features: list[Features]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Queries, and the key of each."""
        with torch.autocast(self.keys.device.type, enabled=False):
            queries = [self.projector(one.pooled.float()) for one in features]
        others = views[1:2] if len(features) == 1 else [views[1], views[0]]
        return queries, self.teacher.project(others)


def _image_numbers(view: Views) -> Int64[Tensor, " B"]:
    if view.image_index is not None:
        return view.image_index
    return torch.full((len(view),), UNKNOWN, device=view.images.device)
