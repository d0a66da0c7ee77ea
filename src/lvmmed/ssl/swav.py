"""SwAV: predict the cluster of one view from another, with clusters of equal size.

Letters used in shapes:
    B: images of this process.
    K: prototypes.
    F: features of an embedding.
    L: embeddings of each view in the queue.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.distributed import all_gather
from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.heads import Projector
from lvmmed.ssl.clustering import balanced_codes
from lvmmed.ssl.figures import partner_accuracy
from lvmmed.ssl.method import LossOutput, Method, MethodContext, RunFacts
from lvmmed.types import InputError


class SwavConfig(MethodConfig):
    """Fields of SwAV."""

    name: Literal["swav"] = "swav"
    """Row of the table of methods."""
    num_prototypes: int = Field(300, ge=2)
    """Clusters; at most the images of a batch and the queue (paper 3000, of 1.3 M images)."""
    temperature: float = Field(0.1, gt=0)
    """Divides cosines of the view that predicts (Caron et al. 2020)."""
    epsilon: float = Field(0.05, gt=0)
    """Divides cosines before they are balanced; small makes codes sharp (Caron et al. 2020)."""
    sinkhorn_iterations: int = Field(3, ge=1)
    """Rounds of balancing (Caron et al. 2020)."""
    queue_length: int = Field(0, ge=0)
    """Embeddings of each view kept to balance small batches; 0 = none (paper 3840 at 256)."""
    queue_start_frac: float = Field(0.04, ge=0, lt=1)
    """Share of the run after which the queue fills and then is used (paper 15 of 400 epochs)."""
    freeze_prototypes_frac: float = Field(0.01, ge=0, lt=1)
    """Share of the run with fixed prototypes (paper: the first epoch)."""
    projection_width: int = Field(128, ge=1)
    """Length of an embedding (Caron et al. 2020)."""
    projector_hidden_layers: int = Field(1, ge=0)
    """Hidden layers, each linear, batch normalisation, relu; 1 makes a two-layer MLP."""
    projector_hidden_width: int = Field(2048, ge=1)
    """Width of the hidden layers (Caron et al. 2020)."""


def check_swav(config: SwavConfig, facts: RunFacts) -> None:
    """Refuse more prototypes than there are images to share out, and a queue that is never used.

    Args:
        config: of the method.
        facts: of the run.

    Raises:
        InputError: a batch and the queue hold fewer images than there are prototypes, or the queue
            is not full before the last step.
    """
    num_images = facts.batch_size + config.queue_length
    if config.num_prototypes > num_images:
        length = config.num_prototypes - facts.batch_size
        raise InputError(
            f"method.num_prototypes: got {config.num_prototypes}, need at most the {num_images} "
            "images of a step (train.batch_size + method.queue_length), as each gets an equal "
            f"part of them; lower it, or set method.queue_length={length} or more"
        )
    num_filling = facts.num_steps - 1 - _queue_start(config, facts.num_steps)
    most = max(0, num_filling) * facts.batch_size
    if config.queue_length > most:
        raise InputError(
            f"method.queue_length: got {config.queue_length}, need at most the {most} images that "
            f"enter the queue before the last of {facts.num_steps} steps, as it is used when it is "
            "full; lower it (0 = none) or method.queue_start_frac, or train longer"
        )


def _queue_start(config: SwavConfig, num_steps: int) -> int:
    """Step from which on embeddings enter the queue."""
    return round(config.queue_start_frac * num_steps)


def swapped_loss(
    scores: Sequence[Float[Tensor, "B K"]],
    codes: Sequence[Float[Tensor, "B K"]],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Predict the code of a full view from every other view of the same image.

    Mean over pairs (i, v) of a full view i and another view v, and over images, of
    - sum over k of q_i[k] * log softmax(s_v / t)[k].

    Args:
        scores: s above, cosines with the prototypes; of the full views first.
        codes: q above, one for each full view; rows of sum 1.
        temperature: t above.

    Returns:
        A number, at least the entropy of the codes.

    Source:
        Caron et al. 2020 (SwAV), equations 2 and 6; a mean where 6 has a sum.
    """
    log_probabilities = [functional.log_softmax(one / temperature, dim=1) for one in scores]
    terms = [
        -(code * log_probability).sum(1).mean()
        for i, code in enumerate(codes)
        for v, log_probability in enumerate(log_probabilities)
        if v != i
    ]
    return torch.stack(terms).mean()


class Swav(Method):
    """Share out the images of a batch equally over prototypes, and predict one view's share.

    The code of a full view says how much it belongs to each prototype, with equal totals for all,
    so that they cannot all collapse into one. Every other view of the image, small crops too, has
    to predict it.

    Differs from the paper in: queue and freezing are set as shares of the run; batch normalisation
    of the projector sees one view at a time; only full views move the encoder's running statistics.
    """

    queue: Float[Tensor, "2 L F"]
    num_enqueued: Int64[Tensor, ""]

    def __init__(self, config: SwavConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.num_steps = context.facts.num_steps
        self.projector = Projector(
            context.backbone.width,
            config.projection_width,
            num_hidden=config.projector_hidden_layers,
            hidden_width=config.projector_hidden_width,
            generator=context.generator,
        )
        shape = (config.num_prototypes, config.projection_width)
        drawn = torch.randn(shape, generator=context.generator)
        self.prototypes = nn.Parameter(functional.normalize(drawn, dim=1))
        length = config.queue_length
        self.register_buffer("queue", torch.zeros(2, length, config.projection_width))
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.long))
        self._new_embeddings: Tensor | None = None

    def training_loss(
        self,
        views: list[Views],  # noqa: ARG002
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Predict the codes of both full views; the queue takes up the step in `after_step` only.

        Args:
            views: not used.
            features: of two full views, then of small crops.
            step: says whether prototypes are still fixed.
            generator: not used, nothing is random.

        Returns:
            The swapped prediction loss.
        """
        embeddings = self._embed(features)
        with torch.autocast(self.prototypes.device.type, enabled=False):
            loss = self._loss(embeddings, step=step)
        self._new_embeddings = torch.stack([one.detach() for one in embeddings[:2]], dim=1)
        return LossOutput(total=loss, terms={"swapped_loss": loss.detach()})

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],  # noqa: ARG002
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge embeddings and codes of the batch.

        Args:
            views: not used.
            features: as for `training_loss`.
            step: not used.
            generator: not used.

        Returns:
            partner_accuracy: share of images whose other view is the nearest of all.
            code_entropy: of a code, 0 for one prototype each to 1 for all alike (collapse).
            prototypes_used: share of prototypes that are the largest part of some image's code.
            queue_filled: share of the queue that holds images; absent without a queue.
        """
        embeddings = self._embed(features)[:2]
        with torch.autocast(self.prototypes.device.type, enabled=False):
            codes = self._codes(embeddings)[0]
            accuracy = partner_accuracy(*embeddings)
        entropy = torch.special.entr(codes).sum(1).mean() / math.log(len(self.prototypes))
        used = torch.unique(all_gather(codes).argmax(1))
        figures = {
            "partner_accuracy": float(accuracy),
            "code_entropy": float(entropy),
            "prototypes_used": len(used) / len(self.prototypes),
        }
        length = self.config.queue_length
        if length:
            figures["queue_filled"] = min(int(self.num_enqueued), length) / length
        return figures

    @torch.no_grad()
    def after_step(self, step: int, backbone: Backbone) -> None:  # noqa: ARG002
        """Bring prototypes back to length 1 and put the step's embeddings into the queue.

        Args:
            step: number of the step; the queue starts late.
            backbone: not used.
        """
        self.prototypes.copy_(functional.normalize(self.prototypes, dim=1))
        length = self.config.queue_length
        is_started = step >= _queue_start(self.config, self.num_steps)
        if length and is_started and self._new_embeddings is not None:
            new = all_gather(self._new_embeddings)[-length:]  # [images, 2, F]
            places = (self.num_enqueued + torch.arange(len(new), device=new.device)) % length
            self.queue[:, places] = new.transpose(0, 1)
            self.num_enqueued += len(new)
        self._new_embeddings = None

    def _embed(self, features: list[Features]) -> list[Float[Tensor, "B F"]]:
        with torch.autocast(self.prototypes.device.type, enabled=False):
            return [
                functional.normalize(self.projector(one.pooled.float()), dim=1) for one in features
            ]

    def _loss(self, embeddings: list[Float[Tensor, "B F"]], *, step: int) -> Float[Tensor, ""]:
        is_frozen = step < round(self.config.freeze_prototypes_frac * self.num_steps)
        prototypes = self.prototypes.detach() if is_frozen else self.prototypes
        return swapped_loss(
            [one @ prototypes.T for one in embeddings],
            self._codes(embeddings[:2]),
            temperature=self.config.temperature,
        )

    @torch.no_grad()
    def _codes(self, embeddings: list[Float[Tensor, "B F"]]) -> list[Float[Tensor, "B K"]]:
        """Codes of each full view, balanced over its own batch and queue."""
        length = self.config.queue_length
        is_queue_full = length > 0 and int(self.num_enqueued) >= length
        return [
            balanced_codes(
                one @ self.prototypes.T,
                epsilon=self.config.epsilon,
                num_iterations=self.config.sinkhorn_iterations,
                further=queued @ self.prototypes.T if is_queue_full else None,
            )
            for one, queued in zip(embeddings, self.queue, strict=True)
        ]
