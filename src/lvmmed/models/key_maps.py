"""Names of weights in the files people have, brought to the names timm uses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WRAPPERS = ("state_dict", "model")
"""Entries under which training scripts put the weights."""

PREFIXES = ("module.", "backbone.", "model.", "image_encoder.", "encoder.")
"""Names under which larger models hold their encoder."""

HEADS = ("fc.", "head.", "classifier.", "_fc.", "head_drop.")
"""Classifiers, which no encoder needs."""

NUM_SHOWN = 3
"""Names listed in messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyReport:
    """How the names in a file met those of an encoder.

    Attributes:
        num_wanted: tensors of the encoder.
        matched: names found in the file, with the right shape.
        missing: names not in the file, or there with another shape.
        unexpected: names in the file that the encoder has no place for.
        ignored: names known to be of no use: classifiers, decoders, SAM's neck.
        filled: names that were set to zero: counters of batch normalisation, position embeddings
            that the released ViT does not have.
        resampled: position embeddings brought to another grid.
    """

    num_wanted: int
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the encoder was found and nothing else was in the file."""
        return not self.missing and not self.unexpected

    def summary(self) -> str:
        """Say in one line what fitted and what did not, with the first few names."""
        parts = [f"{len(self.matched)} of {self.num_wanted} tensors matched"]
        if self.filled:
            parts.append(f"{len(self.filled)} set to zero")
        for name in ("missing", "unexpected"):
            keys = getattr(self, name)
            if keys:
                more = ", ..." if len(keys) > NUM_SHOWN else ""
                parts.append(f"{len(keys)} {name}: {', '.join(keys[:NUM_SHOWN])}{more}")
        return "; ".join(parts)


def unwrap(content: Any) -> dict[str, Tensor]:
    """Find the named tensors in what a weight file holds.

    Args:
        content: a mapping of names to tensors, or one that holds it under a usual entry.

    Returns:
        Names and tensors; empty when there are none.
    """
    while isinstance(content, Mapping):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        content = inner
    return {}


def readings(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """List the ways to read the names: as they are, then with one prefix after another taken off.

    Where some names carry a prefix, the others belong to a decoder or head and are left out.

    Args:
        state: names and tensors.

    Returns:
        One or more mappings, the last with the fewest prefixes.
    """
    found = [dict(state)]
    while (prefix := _first_prefix(found[-1])) is not None:
        inner = {k.removeprefix(prefix): v for k, v in found[-1].items() if k.startswith(prefix)}
        found.append(inner)
    return found


def guess_backbone(state: Mapping[str, Tensor]) -> str | None:
    """Tell the encoder from names and shapes, where they leave no doubt.

    Args:
        state: names and tensors without prefixes.

    Returns:
        Name in timm, None when it cannot be told (plain ViTs of many kinds look alike).
    """
    if "layer1.0.conv2.weight" in state and "conv1.weight" in state:
        return _guess_resnet(state)
    if "blocks.0.attn.rel_pos_h" in state and "patch_embed.proj.weight" in state:
        width = state["patch_embed.proj.weight"].shape[0]
        names = {768: "samvit_base_patch16_224", 1024: "samvit_large_patch16"}
        return {**names, 1280: "samvit_huge_patch16"}.get(width)
    if "_conv_stem.weight" in state and _num_blocks(state, "_blocks.") == 16:
        has_squeeze = any("_se_" in key for key in state)
        return None if has_squeeze else "tf_efficientnet_lite0"
    return None


def match_keys(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], KeyReport]:
    """Bring a file's weights under an encoder's names.

    Args:
        state: names and tensors of the file, without wrapper.
        wanted: names and tensors of the encoder.

    Returns:
        (weights under the encoder's names, report); shapes are not yet compared.
    """
    options = [_renamed(option, wanted) for option in readings(state)]
    best = max(options, key=lambda option: len(option.keys() & wanted.keys()))
    filled = {key: torch.zeros_like(wanted[key]) for key in wanted.keys() - best.keys()}
    filled = {key: value for key, value in filled.items() if _may_be_zero(key, best)}
    ignored = {key for key in best.keys() - wanted.keys() if _is_useless(key)}
    unexpected = best.keys() - wanted.keys() - ignored
    fitting = {key: value for key, value in best.items() if key in wanted}
    report = KeyReport(
        num_wanted=len(wanted),
        matched=tuple(key for key in wanted if key in best),
        missing=tuple(key for key in wanted if key not in best and key not in filled),
        unexpected=tuple(sorted(unexpected)),
        ignored=tuple(sorted(ignored)),
        filled=tuple(sorted(filled)),
    )
    return {**fitting, **filled}, report


def _first_prefix(state: Mapping[str, Tensor]) -> str | None:
    return next((p for p in PREFIXES if any(key.startswith(p) for key in state)), None)


def _renamed(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "_conv_stem.weight" in state:
        return _in_order(state, wanted)
    # SAM's own name for what timm calls fc
    return {key.replace(".mlp.lin", ".mlp.fc"): value for key, value in state.items()}


def _in_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pair EfficientNet-Lite's tensors with timm's by order, which is the same in both."""
    theirs = [key for key in state if not key.startswith(HEADS) and not _is_counter(key)]
    ours = [key for key in wanted if not _is_counter(key)]
    is_same = len(theirs) == len(ours) and all(
        state[a].shape == wanted[b].shape for a, b in zip(theirs, ours, strict=True)
    )
    if not is_same:
        return dict(state)
    return {b: state[a] for a, b in zip(theirs, ours, strict=True)}


def _guess_resnet(state: Mapping[str, Tensor]) -> str | None:
    depths = tuple(_num_blocks(state, f"layer{i}.") for i in range(1, 5))
    is_bottleneck = "layer1.0.conv3.weight" in state
    if tuple(state["layer1.0.conv2.weight"].shape) != (64, 64, 3, 3):
        return None  # wide or grouped
    basic: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
    bottleneck: dict[tuple[int, ...], str] = {
        (3, 4, 6, 3): "resnet50",
        (3, 4, 23, 3): "resnet101",
        (3, 8, 36, 3): "resnet152",
    }
    return (bottleneck if is_bottleneck else basic).get(depths)


def _num_blocks(state: Iterable[str], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _may_be_zero(key: str, state: Mapping[str, Tensor]) -> bool:
    is_sam = "blocks.0.attn.rel_pos_h" in state
    return _is_counter(key) or (key == "pos_embed" and is_sam)


def _is_useless(key: str) -> bool:
    return key.startswith((*HEADS, "neck.")) or key == "pos_embed" or _is_counter(key)
