"""Classification by full fine-tuning: an encoder with a linear head on its pooled features.

The weights that are tested are those of the epoch with the best balanced accuracy on the
validation cases (at a tie the lower validation loss). Training images are augmented lightly;
validation and test images never.

Letters used in shapes:
    B: images of a batch.
    n: cases.
    S: side of an image in pixels.
    c: classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from lvmmed.augment.views import ImageBatch, apply_views, draw_views, encoder_input
from lvmmed.config import Settings, TrainConfig, ViewsConfig
from lvmmed.engine.optim import learning_rate_at, parameter_groups
from lvmmed.evaluation.classification import classification_scores
from lvmmed.models.backbones import Backbone
from lvmmed.types import InputError

HEAD_STD = 0.01
EVALUATION_PIXELS = 128 * 224**2
"""Pixels that are predicted at once: 128 images of 224 px, six of 1024."""


class FitSettings(Settings):
    """How a classifier is trained."""

    epochs: int = Field(20, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(32, ge=2)
    """Images a step; up to twice as many where the number of images does not divide."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of the head (AdamW)."""
    backbone_learning_rate_scale: float = Field(0.1, gt=0)
    """Learning rate of the encoder as a fraction of the head's."""
    weight_decay: float = Field(1e-2, ge=0)
    """Weight decay; biases and norm parameters are exempt."""
    warmup_frac: float = Field(0.1, ge=0, lt=1)
    """Share of the run over which the learning rate rises; then it falls along a cosine."""
    frozen: bool = False
    """Train the head alone; the encoder stays in evaluation mode, its batch statistics too."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced = loss of a class weighted by one over its share of the training images."""
    augment: bool = True
    """Random crops, flips and mild jitter of the training images."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Range of a crop's area as a fraction of the image."""
    flip_probability: float = Field(0.5, ge=0, le=1)
    """Chance of a left-right flip; 0 where sides matter."""
    jitter: float = Field(0.2, ge=0, le=1)
    """Largest relative change of brightness and contrast."""

    @model_validator(mode="after")
    def _check_scale(self) -> "FitSettings":
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale: got [{low}, {high}], need 0 < low <= high <= 1")
        return self


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Images with labels.

    Attributes:
        images: squares as `load_square_images` returns them.
        labels: class numbers.
    """

    images: UInt8[np.ndarray, "n S S 3"]
    labels: Int64[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """What is known after an epoch.

    Attributes:
        epoch: 1 for the first.
        step: steps done.
        loss: mean training loss of the epoch.
        learning_rate: of the head at the epoch's last step.
        val_loss: cross-entropy on the validation cases, unweighted.
        val_balanced_accuracy: on the validation cases.
    """

    epoch: int
    step: int
    loss: float
    learning_rate: float
    val_loss: float
    val_balanced_accuracy: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a fit went; the model itself holds the weights of the best epoch.

    Attributes:
        best: row of the epoch whose weights were kept.
        rows: one an epoch.
    """

    best: EpochRow
    rows: tuple[EpochRow, ...]


class Classifier(nn.Module):
    """An encoder and a linear head on its pooled features.

    With `frozen` the encoder has no gradients and stays in evaluation mode whatever `train` says,
    so its batch statistics do not drift.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        generator: torch.Generator,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen = frozen
        self.head = nn.Linear(backbone.width, num_classes)
        with torch.no_grad():
            self.head.weight.normal_(0.0, HEAD_STD, generator=generator)
            self.head.bias.zero_()
        if frozen:
            backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode of everything but a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B c"]:
        """Logits of normalised images, in fp32."""
        return self.head(self.backbone(images).pooled.float())  # type: ignore[no-any-return]


def fit(
    model: Classifier,
    train: Examples,
    val: Examples,
    settings: FitSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[EpochRow], None] | None = None,
) -> FitResult:
    """Train a classifier and leave it with the weights of its best epoch.

    Args:
        model: trained in place; moved to the device.
        train: training cases of two or more classes.
        val: validation cases, for choosing the epoch.
        settings: how.
        seed: of the order of images and of augmentation (the head comes from the model's own
            generator).
        device: where to train.
        on_epoch: called after every epoch.

    Returns:
        The best epoch and all rows. One class only, no validation cases, or a loss that is not
        finite is refused with an InputError.
    """
    _check_classes(train, val)
    training = _Training(model.to(device), train, settings, seed=seed, device=torch.device(device))
    rows: list[EpochRow] = []
    best: EpochRow | None = None
    best_state: dict[str, Tensor] = {}
    devices = [training.device] if training.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # dropout and drop path draw from the global stream
        torch.manual_seed(seed)
        for epoch in range(1, settings.epochs + 1):
            loss = training.run_epoch()
            row = _row(epoch, loss, training, val)
            rows.append(row)
            if best is None or _rank(row) > _rank(best):
                best = row
                best_state = {name: v.detach().clone() for name, v in model.state_dict().items()}
            if on_epoch is not None:
                on_epoch(row)
    assert best is not None
    model.load_state_dict(best_state)
    model.eval()
    return FitResult(best=best, rows=tuple(rows))


def predict_probabilities(
    model: Classifier,
    images: UInt8[np.ndarray, "n S S 3"],
    *,
    device: torch.device | str = "cpu",
) -> Float32[np.ndarray, "n c"]:
    """Predict without augmentation, in evaluation mode; an image's result stands on its own.

    Args:
        model: classifier; moved to the device and left in evaluation mode.
        images: squares of the size it was trained at.
        device: where to run.

    Returns:
        Probability of every class.
    """
    model.to(device).eval()
    mean, std = model.backbone.mean, model.backbone.std
    parts = [np.empty((0, model.head.out_features), dtype=np.float32)]
    num_rows = max(1, EVALUATION_PIXELS // (images.shape[1] * images.shape[2]))
    # begins after the move to the device, which would leave parameters that cannot be trained
    with torch.inference_mode():
        for start in range(0, len(images), num_rows):
            part = images[start : start + num_rows]
            logits = model(encoder_input(part, mean, std, device=device))
            parts.append(logits.softmax(dim=1).cpu().numpy())
    return np.concatenate(parts)


class _Training:
    """Optimiser, images and position of a fit that is under way."""

    def __init__(
        self,
        model: Classifier,
        train: Examples,
        settings: FitSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)
        self.images = _to_image_batch(train.images)
        self.labels = torch.from_numpy(train.labels)
        self.loss_function = nn.CrossEntropyLoss(_class_weights(train.labels, model, settings))
        self.optimizer = torch.optim.AdamW(_groups(model, settings), lr=settings.learning_rate)
        # at least batch_size images each, so that no batch normalisation sees a single image
        self.num_batches = max(1, len(train.labels) // settings.batch_size)
        self.num_steps = settings.epochs * self.num_batches
        self.num_done = 0
        self.rate = 0.0

    def run_epoch(self) -> float:
        """Take every training image once; returns the mean loss."""
        self.model.train()
        order = torch.randperm(len(self.labels), generator=self.generator)
        losses = [self._step(rows) for rows in order.tensor_split(self.num_batches)]
        return float(torch.stack(losses).mean())

    def _step(self, rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        self._set_rates()
        images = _training_images(self.images[rows], self)
        loss: Tensor = self.loss_function(self.model(images), self.labels[rows].to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.num_done += 1
        return loss.detach()

    def _set_rates(self) -> None:
        config = TrainConfig(
            steps=self.num_steps,
            learning_rate=self.settings.learning_rate,
            warmup_frac=self.settings.warmup_frac,
        )
        self.rate = learning_rate_at(self.num_done, num_steps=self.num_steps, config=config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["rate_scale"]


def _row(epoch: int, loss: float, training: _Training, val: Examples) -> EpochRow:
    probabilities = predict_probabilities(training.model, val.images, device=training.device)
    if not (math.isfinite(loss) and np.isfinite(probabilities).all()):
        raise InputError(
            f"epoch {epoch}: training diverged (loss {loss:.3g}) at learning_rate "
            f"{training.settings.learning_rate:g}; lower it with --set learning_rate=..."
        )
    of_truth = probabilities[np.arange(len(val.labels)), val.labels].astype(np.float64)
    scores = classification_scores(probabilities, val.labels)
    return EpochRow(
        epoch=epoch,
        step=training.num_done,
        loss=loss,
        learning_rate=training.rate,
        val_loss=float(-np.log(of_truth.clip(min=1e-12)).mean()),
        val_balanced_accuracy=scores["balanced_accuracy"],
    )


def _rank(row: EpochRow) -> tuple[float, float]:
    return row.val_balanced_accuracy, -row.val_loss


def _check_classes(train: Examples, val: Examples) -> None:
    present = np.unique(train.labels)
    if len(present) < 2:
        raise InputError(
            f"train: {len(train.labels)} cases of one class only; "
            "fine-tuning needs training images of two or more classes"
        )
    if not len(val.labels):
        raise InputError("val: no cases; the best epoch is chosen on val, give it some images")


def _groups(model: Classifier, settings: FitSettings) -> list[dict[str, Any]]:
    """Parameter groups: encoder and head, each with and without weight decay."""
    scales = ((model.backbone, settings.backbone_learning_rate_scale), (model.head, 1.0))
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "rate_scale": scale}
        for module, scale in scales
        for group in parameter_groups(module.named_parameters(), weight_decay=settings.weight_decay)
    ]


def _class_weights(
    labels: Int64[np.ndarray, " n"], model: Classifier, settings: FitSettings
) -> Float[Tensor, " c"] | None:
    """Weights whose mean over the training images is 1; a class without images gets 0."""
    if settings.class_weights == "none":
        return None
    counts = torch.from_numpy(np.bincount(labels, minlength=model.head.out_features)).double()
    weights = torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0)
    return weights.to(model.head.weight)


def _to_image_batch(images: UInt8[np.ndarray, "n S S 3"]) -> ImageBatch:
    """All images in one tensor, with one channel when every one is grey."""
    is_grey = (images == images[..., :1]).all(axis=(1, 2, 3))
    planes = images[..., :1] if is_grey.all() else images
    sizes = torch.full((len(images), 2), images.shape[1], dtype=torch.int64)
    return ImageBatch(
        pixels=torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 3, 1, 2))),
        sizes=sizes,
        is_grey=torch.from_numpy(is_grey),
    )


def _training_images(batch: ImageBatch, training: _Training) -> Float[Tensor, "B 3 S S"]:
    """Augmented (or, with augment=False, plain) encoder input."""
    mean, std = training.model.backbone.mean, training.model.backbone.std
    if not training.settings.augment:
        squares = batch.pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        return encoder_input(squares, mean, std, device=training.device)
    views = _view_settings(batch.pixels.shape[-1], training.settings)
    parameters = draw_views(batch.sizes, views, generator=training.generator).to(training.device)
    batch = batch.to(training.device)
    return apply_views(batch, parameters, settings=views, mean=mean, std=std).images


def _view_settings(size_px: int, settings: FitSettings) -> ViewsConfig:
    return ViewsConfig(
        size=size_px,
        scale=settings.crop_scale,
        flip_probability=settings.flip_probability,
        jitter_probability=0.8,
        brightness=settings.jitter,
        contrast=settings.jitter,
        saturation=settings.jitter / 2,
        hue=0,
        grey_probability=0,
        blur_probability=0,
    )
