"""Reading encoders from all the files people have, and writing our own."""

import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lvmmed.files import file_sha256, is_there, write_atomically
from lvmmed.models.backbones import (
    Backbone,
    build_backbone,
    default_size_px,
    is_timm_name,
)
from lvmmed.models.cards import CARD, LVMMED_LICENCE, card_text, read_card
from lvmmed.models.key_maps import KeyReport, guess_backbone, match_keys, readings, unwrap
from lvmmed.models.position_embeddings import fit_positions
from lvmmed.models.reasons import first_sentence
from lvmmed.types import Card, InputError

ENCODER = "encoder.safetensors"
"""Name of an encoder's file in a run folder."""

PICKLE_SUFFIXES = (".pth", ".pt", ".torch", ".bin", ".ckpt", ".tar")
"""Files that torch.load reads; only tensors are taken from them, never code."""

REAL_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that weights are read from."""

COUNTER_TYPES = (*REAL_TYPES, torch.int32, torch.int64)
"""Types that the counters of batch normalisation are read from."""

LVMMED_DATA = {
    "LVM-Med pre-training mixture": {"licence": "55 sets, each its own", "num_images": 1_294_015}
}
"""What the released weights have seen (paper, table 13)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedEncoder:
    """An encoder with its history.

    Attributes:
        backbone: on the CPU, in training mode.
        card: what is known of it; `lineage(card)` is the `derived_from` of what continues from it.
        report: how the names in the file met those of the encoder.
    """

    backbone: Backbone
    card: Card
    report: KeyReport


def load_encoder(
    source: str,
    *,
    backbone: str | None = None,
    size_px: int | None = None,
    seed: int = 0,
    option: str = "model.backbone",
) -> LoadedEncoder:
    """Read an encoder; every one of its tensors must be found, and no unknown one be left.

    Args:
        source: "random", "timm:NAME", a run folder, a .safetensors file of ours (with card.json
            beside it), or a state dict of timm, torchvision or SAM, bare or inside a larger model,
            such as the released lvmmed_resnet.torch and lvmmed_vit.pth.
        backbone: name in timm; needed for "random", and for files whose names leave doubt.
        size_px: side of the images it will see; None = what the card or timm says.
        seed: of random weights.
        option: how the user names the backbone, for errors: a field, or an option with its dashes.

    Returns:
        The encoder with its card and the report on names.

    Raises:
        InputError: no such source, not a weight file, an encoder other than `backbone`, tensors
            missing, unexpected, of another shape or type, or not finite.
    """
    if source == "random":
        if backbone is None:
            raise InputError(f"weights 'random': name the encoder with {_given(option, 'NAME')}")
        return _built(backbone, size_px=size_px, seed=seed, pretrained=False)
    if source.startswith("timm:"):
        name = source.removeprefix("timm:")
        _check_same(source, name, backbone, option)
        return _built(name, size_px=size_px, seed=seed, pretrained=True)
    path = _weight_file(source)
    if path.suffix == ".safetensors" and (path.parent / CARD).is_file():
        return _load_ours(path, backbone=backbone, size_px=size_px, option=option)
    return _load_foreign(path, backbone=backbone, size_px=size_px, option=option)


def save_encoder(backbone: Backbone, folder: Path, card: Card) -> Card:
    """Write encoder.safetensors and card.json; each appears whole or not at all.

    Args:
        backbone: the encoder.
        folder: where to write; made if it is not there.
        card: its history. Name, width, input size, mean and std are taken from `backbone`.

    Returns:
        The card as written, with the hash of the encoder's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # a copy on the CPU of each, as safetensors refuses tensors that share memory
    state = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in backbone.model.state_dict().items()
    }
    path = folder / ENCODER
    write_atomically(path, lambda temporary: safetensors.torch.save_file(state, temporary))
    written = dataclasses.replace(
        card,
        backbone=backbone.name,
        width=backbone.width,
        input_size=backbone.size_px,
        mean=backbone.mean,
        std=backbone.std,
        sha256=file_sha256(path),
    )
    text = card_text(written)
    write_atomically(folder / CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return written


def card_for(backbone: Backbone, *, derived_from: str = "random") -> Card:
    """Make the card of an encoder that has no history yet.

    Args:
        backbone: the encoder.
        derived_from: where its weights come from.

    Returns:
        The card, without hash.
    """
    return Card(
        backbone=backbone.name,
        width=backbone.width,
        input_size=backbone.size_px,
        mean=backbone.mean,
        std=backbone.std,
        derived_from=derived_from,
    )


def _built(name: str, *, size_px: int | None, seed: int, pretrained: bool) -> LoadedEncoder:
    encoder = build_backbone(
        name,
        size_px=size_px or default_size_px(name),
        generator=torch.Generator().manual_seed(seed),
        pretrained=pretrained,
    )
    names = tuple(encoder.model.state_dict())
    origin = f"timm:{name}" if pretrained else "random"
    report = KeyReport(num_wanted=len(names), matched=names)
    return LoadedEncoder(
        backbone=encoder, card=card_for(encoder, derived_from=origin), report=report
    )


def _load_ours(
    path: Path, *, backbone: str | None, size_px: int | None, option: str
) -> LoadedEncoder:
    card = read_card(path.parent / CARD)
    if card.sha256 is not None and card.sha256 != file_sha256(path):
        raise InputError(
            f"{path}: sha256 differs from the one in {CARD}; copy both files again, "
            f"or move the file away from a {CARD} that is not its own"
        )
    _check_same(str(path), card.backbone, backbone, option)
    encoder, report = _filled(
        path, _read_state(path), card.backbone, size_px=size_px or card.input_size
    )
    return LoadedEncoder(
        backbone=encoder, card=dataclasses.replace(card, input_size=encoder.size_px), report=report
    )


def _load_foreign(
    path: Path, *, backbone: str | None, size_px: int | None, option: str
) -> LoadedEncoder:
    state = _read_state(path)
    bare = readings(state)[-1]
    name = backbone or guess_backbone(bare)
    if name is None:
        shown = ", ".join(list(state)[:3])
        raise InputError(
            f"{path}: cannot tell the encoder from its names ({shown}, ...); "
            f"name it with {_given(option, 'NAME')}"
        )
    encoder, report = _filled(path, state, name, size_px=size_px or default_size_px(name))
    card = card_for(encoder, derived_from=f"file {path.name} (licence unknown)")
    if _is_released(path, state):
        card = dataclasses.replace(
            card, derived_from=f"{path.name}, {LVMMED_LICENCE}", datasets=LVMMED_DATA
        )
    return LoadedEncoder(backbone=encoder, card=card, report=report)


def _filled(
    path: Path, state: Mapping[str, Tensor], name: str, *, size_px: int
) -> tuple[Backbone, KeyReport]:
    """Build the encoder and load the file's weights, all of them or none."""
    encoder = build_backbone(name, size_px=size_px)
    wanted = encoder.model.state_dict()
    found, report = match_keys(state, wanted)
    _refuse_unreadable(path, found, wanted)
    fitted = fit_positions(found, encoder)
    wrong = {
        key: f"{key} {tuple(value.shape)} instead of {tuple(wanted[key].shape)}"
        for key, value in fitted.items()
        if value.shape != wanted[key].shape
    }
    report = dataclasses.replace(
        report,
        matched=tuple(key for key in report.matched if key not in wrong),
        missing=(*report.missing, *wrong.values()),
        resampled=tuple(key for key in found if fitted[key] is not found[key]),
    )
    if not report.is_complete:
        raise InputError(f"{path}: not a {name} at {size_px} px ({report.summary()})")
    broken = [key for key, value in fitted.items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{path}: {len(broken)} tensors hold nan or inf, first {broken[0]}")
    encoder.model.load_state_dict(fitted, strict=True)
    return encoder, report


def _refuse_unreadable(
    path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are not dense, or not of real numbers; counters may be whole ones."""
    for key, value in found.items():
        allowed = REAL_TYPES if wanted[key].is_floating_point() else COUNTER_TYPES
        is_dense = value.layout is torch.strided
        if is_dense and not value.is_meta and value.dtype in allowed:
            continue
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_meta:
            kind += " without values"
        elif not is_dense:
            kind += f" of layout {value.layout}"
        raise InputError(
            f"{path}: tensor {key} is {kind}, need real floating-point numbers, stored densely; "
            "save it as float32"
        )


def _weight_file(source: str) -> Path:
    path = Path(source)
    if is_there(path) and path.is_dir():
        if not (path / ENCODER).is_file():
            raise InputError(f"{path}: no {ENCODER} in it; finish the run with --resume")
        return path / ENCODER
    if path.is_file():
        return path
    hint = "allowed are random, timm:NAME, a run folder, a weight file"
    if is_timm_name(source):
        hint = f"did you mean 'timm:{source}'?"
    raise InputError(f"weights {source!r}: no such file or folder; {hint}")


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a safetensors file ({first_sentence(error)})") from error
    if path.suffix not in PICKLE_SUFFIXES:
        allowed = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise InputError(f"{path}: a weight file ends in one of {allowed}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors, which could run code, or is damaged; "
            "save its state_dict() alone and use that"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({first_sentence(error)})") from error
    except Exception as error:  # of other content torch.load raises any type, and often a number
        raise InputError(
            f"{path}: not a file that torch.save wrote, or a damaged one; save a model's "
            "state_dict() with torch.save, or copy the file again"
        ) from error
    state = unwrap(content)
    if not state:
        raise InputError(f"{path}: holds no named tensors; save a model's state_dict()")
    return state


def _is_released(path: Path, state: Mapping[str, Tensor]) -> bool:
    """Whether this is an LVM-Med file: by name, or as the only SAM encoder without positions."""
    is_named_so = any(name in path.name.lower() for name in ("lvmmed", "lvm-med", "lvm_med"))
    is_bare_sam = "blocks.0.mlp.lin1.weight" in state and "pos_embed" not in state
    return is_named_so or is_bare_sam


def _check_same(source: str, found: str, asked: str | None, option: str) -> None:
    if asked is not None and asked.split(".")[0] != found.split(".")[0]:
        raise InputError(
            f"weights {source!r}: hold {found}, but {option} is {asked!r}; "
            f"use {_given(option, found)}"
        )


def _given(option: str, value: str) -> str:
    """Write how the option is given a value on the command line."""
    return f"{option} {value}" if option.startswith("--") else f"--set {option}={value}"
