"""Encoders to be judged: loaded, with the card that their training wrote."""

from dataclasses import dataclass
from pathlib import Path

from lvmmed.models.backbones import Backbone
from lvmmed.models.cards import CARD, read_card
from lvmmed.models.weights import load_encoder
from lvmmed.types import Card


@dataclass(frozen=True, kw_only=True)
class JudgedEncoder:
    """An encoder and its history.

    Attributes:
        backbone: ready for images of `size_px`.
        card: as its training wrote it: `input_size` is the size it was trained at.
        size_px: side of the images it was loaded for.
    """

    backbone: Backbone
    card: Card
    size_px: int


def load_judged(
    weights: str, *, backbone: str | None, size_px: int | None, seed: int
) -> JudgedEncoder:
    """Load an encoder that is going to be judged.

    Args:
        weights: what `load_encoder` takes.
        backbone: name in timm; needed for random weights.
        size_px: side of the images it will see; None = the size it was trained at.
        seed: of random weights.

    Returns:
        The encoder with the card of its training.

    Raises:
        InputError: what `load_encoder` refuses.
    """
    loaded = load_encoder(
        weights, backbone=backbone, size_px=size_px, seed=seed, option="--backbone"
    )
    card_path = _card_path(weights)
    card = read_card(card_path) if card_path is not None else loaded.card
    return JudgedEncoder(backbone=loaded.backbone, card=card, size_px=loaded.backbone.size_px)


def _card_path(weights: str) -> Path | None:
    """The card beside our own files; None for everything else."""
    path = Path(weights)
    folder = path if path.is_dir() else path.parent
    is_ours = path.is_dir() or path.suffix == ".safetensors"
    return folder / CARD if is_ours and (folder / CARD).is_file() else None
