"""card.json: what an encoder is, where it comes from, and what may be done with it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvmmed.types import FORMAT_VERSION, Card, InputError

CARD = "card.json"
"""Name of the card's file, beside encoder.safetensors."""

LVMMED_LICENCE = "released LVM-Med weights (CC BY-NC-ND / -SA: non-commercial, no derivatives)"
"""What `derived_from` says of encoders that continue from the released files."""

REQUIRED_FIELDS = ("backbone", "width", "input_size", "mean", "std")


def card_text(card: Card) -> str:
    """Write a card as JSON."""
    values = dataclasses.asdict(card)
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def read_card(path: Path) -> Card:
    """Read a card; fields that an older version did not write get their defaults.

    Args:
        path: the file.

    Returns:
        The card.

    Raises:
        InputError: no such file, not a card, or written by a newer version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; an encoder of ours lies beside its {CARD}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}, need an object of fields")
    _check_version(path, values)
    known = {field.name for field in dataclasses.fields(Card)}
    unknown = sorted(set(values) - known)
    missing = [name for name in REQUIRED_FIELDS if name not in values]
    if unknown or missing:
        raise InputError(f"{path}: not a card (unknown fields {unknown}, missing {missing})")
    try:
        return Card(
            **{
                **values,
                "width": int(values["width"]),
                "input_size": int(values["input_size"]),
                "mean": tuple(float(value) for value in values["mean"]),
                "std": tuple(float(value) for value in values["std"]),
            }
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a field has the wrong type ({error})") from error


def lineage(card: Card) -> str:
    """Say where an encoder comes from that continues training from this card's encoder.

    The licence of the released LVM-Med weights stays in the line, however long it grows.

    Args:
        card: of the encoder that training starts from.

    Returns:
        Value for `derived_from` of the new card.
    """
    if card.method is None:
        return card.derived_from
    digest = f", sha256 {card.sha256[:12]}" if card.sha256 else ""
    return f"{card.recipe or card.method} at step {card.step}{digest} < {card.derived_from}"


def is_non_commercial(card: Card) -> bool:
    """Whether the encoder descends from the released LVM-Med weights and inherits their terms."""
    return LVMMED_LICENCE in card.derived_from


def _check_version(path: Path, values: Mapping[str, Any]) -> None:
    found = values.get("format_version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InputError(f"{path}: format_version is {found!r}, need a whole number from 1")
    if found > FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {found}, this version of lvmmed reads up to {FORMAT_VERSION}; "
            "upgrade lvmmed"
        )
