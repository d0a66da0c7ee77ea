"""Puts runs together that differ by nothing but their seed, and says how the others differ."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lvmmed.report.run import PRETRAIN, Run, training_settings

RANDOM_LABEL = "random weights"
"""Label of encoders that were never trained."""

ABSENT = "\N{EN DASH}"
"""Stands where there is no value."""

_INCIDENTAL = {"seed", "seeds", "out", "device", "workers", "command", "resume", "progress"}
"""Last part of configuration keys that do not make two runs different."""

_NOT_OF_JUDGING = {"weights", "data", "fractions"}
"""More such keys of runs that judge: where weights and data lie, and the shares of the labels,
which have figures of their own each."""

_HASH = re.compile("[0-9a-f]{64}")

_KeyT = TypeVar("_KeyT", bound=tuple[str, ...])
_ValueT = TypeVar("_ValueT")

_FIXED_STYLES = {"lvm-med": 0, "simclr": 1, "paper-literal": 2, RANDOM_LABEL: 7}
"""Recipe -> its colour and line style in every figure; others take the next free one."""

NUM_STYLES = 8
"""Colours and line styles that the page defines; number 7 is the neutral grey one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs of one task that differ by seed only.

    Attributes:
        label: name in tables and figures.
        runs: members in the order given.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def backbone(self) -> str:
        """Architecture of all members; "" when not recorded."""
        return self.runs[0].backbone

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all members, in order."""
        return tuple(seed for run in self.runs for seed in run.seeds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Flattened settings of several columns side by side.

    Attributes:
        columns: heading of each column.
        differing: (key, one text a column) where the columns are not all equal.
        common: (key, text) where they are.
    """

    columns: tuple[str, ...]
    differing: tuple[tuple[str, tuple[str, ...]], ...]
    common: tuple[tuple[str, str], ...]


def flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{name}."))
        else:
            flat[name] = value
    return flat


def compare(columns: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Lay nested settings side by side; a key that a column lacks shows a dash."""
    flat = {label: flatten(values) for label, values in columns.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    differing, common = [], []
    for key in keys:
        texts = tuple(as_text(values[key]) if key in values else ABSENT for values in flat.values())
        if len(set(texts)) > 1:
            differing.append((key, texts))
        else:
            common.append((key, texts[0]))
    return Comparison(columns=tuple(flat), differing=tuple(differing), common=tuple(common))


def as_text(value: Any) -> str:
    """Write a setting the way a reader would: no quotes, numbers in their shortest form."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(as_text(item) for item in value) or "none"
    return str(value)


def pretrain_groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Group the pre-training runs by their settings without the seed, the main method first."""
    return _grouped([(run, _recipe_label(run)) for run in runs if run.task == PRETRAIN])


def judging_groups(runs: Sequence[Run], trained: Sequence[Group]) -> tuple[Group, ...]:
    """Group runs that judge encoders by where their weights come from.

    Runs of a group have one backbone, and weights of one training but for its seed: those of a
    group of pre-training runs, or those beside which equal settings lie. Weights beside which there
    are none are joined with themselves alone.

    Args:
        runs: runs of one task on one data set.
        trained: groups of the pre-training runs of the report, to find weights among.

    Returns:
        Groups in the order of the tables.
    """
    return _grouped([(run, weights_label(run, trained)) for run in runs], trained)


def weights_label(run: Run, trained: Sequence[Group]) -> str:
    """Say which encoder a run judged: a pre-training group, a recipe, or the weights' name."""
    if set(run.weights) == {"random"}:
        return RANDOM_LABEL
    group = _source_of(run, trained)
    if group is not None:
        return group.label
    recipe = run.result.get("recipe")
    if recipe and recipe != "custom":
        return str(recipe)
    named = ", ".join(dict.fromkeys(_last_part(name) for name in run.weights))
    return str(run.result.get("method") or named or run.name)


def shares_of_labels(run: Run) -> tuple[float, ...]:
    """Shares of the labels that a run fitted on, in rising order; 1 = all, also where not told."""
    told = run.config.get("fractions")
    return tuple(sorted(told)) if isinstance(told, list) and told else (1.0,)


def each_once(
    runs: Sequence[Run], found: Sequence[Mapping[_KeyT, _ValueT]]
) -> tuple[dict[_KeyT, _ValueT], ...]:
    """Drop what an earlier run found of the same encoder.

    A probe with all labels and one with few of the same encoder both have the figure of all
    labels, which is no repeat; nor is a run that was made again. Other seeds are repeats where they
    draw something: random weights, few labels, or the head of fine-tuning.

    Args:
        runs: members of a group.
        found: what each of them has, by keys that start with the head.

    Returns:
        What is left of each.
    """
    return tuple(
        {
            key: value
            for key, value in own.items()
            if not any(key in found[j] and _is_no_repeat(runs[j], runs[i], key) for j in range(i))
        }
        for i, own in enumerate(found)
    )


def _is_no_repeat(first: Run, second: Run, key: tuple[str, ...]) -> bool:
    if first.encoders != second.encoders:
        return False
    is_drawn = "random" in second.weights or "@" in key[0] or not second.task.startswith("probe")
    return not is_drawn or set(second.seeds) <= set(first.seeds)


def _source_of(run: Run, trained: Sequence[Group]) -> Group | None:
    """The group of pre-training runs that the weights of a run come from."""
    return next(
        (
            group
            for group in trained
            if any(_is_source(name, member) for name in run.weights for member in group.runs)
        ),
        None,
    )


def _is_source(weights: str, run: Run) -> bool:
    if not weights or weights == "random" or weights.startswith("timm:"):
        return False
    path, folder = Path(weights).resolve(), run.folder.resolve()
    return folder in (path, path.parent)


def _last_part(weights: str) -> str:
    return weights if weights.startswith("timm:") else Path(weights).name


def _recipe_label(run: Run) -> str:
    recipe = run.config.get("recipe") or run.result.get("recipe")
    if recipe and recipe != "custom":
        return str(recipe)
    method = run.config.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    return str(name or run.result.get("method") or run.name)


def _variant(run: Run, trained: Sequence[Group]) -> dict[str, str]:
    """What tells runs of one label apart: settings, and of runs that judge also the encoder."""
    if run.task == PRETRAIN:
        return _settings(run.config, _INCIDENTAL)
    own = _settings(run.config, _INCIDENTAL | _NOT_OF_JUDGING)
    if run.backbone:
        own["backbone"] = run.backbone
    return own if _source_of(run, trained) else own | _training(run)


def _training(run: Run) -> dict[str, str]:
    """Settings beside the weights, where all have the same; else which weights they are."""
    if set(run.weights) == {"random"}:
        return {}
    first, *others = [_settings(training_settings(w), _INCIDENTAL) for w in run.weights] or [{}]
    if first and all(other == first for other in others):
        return {f"training.{key}": text for key, text in first.items()}
    return {"encoder": ", ".join(_short(name) for name in run.encoders) or run.name}


def _settings(config: Mapping[str, Any], dropped: set[str]) -> dict[str, str]:
    return {
        key: as_text(value)
        for key, value in flatten(config).items()
        if key.rpartition(".")[2] not in dropped and not key.startswith("log.")
    }


def _short(encoder: str) -> str:
    """Enough of a hash to tell encoders apart; a path as it is."""
    return encoder[:12] if _HASH.fullmatch(encoder) else encoder


def _grouped(
    labelled: Sequence[tuple[Run, str]], trained: Sequence[Group] = ()
) -> tuple[Group, ...]:
    members: dict[tuple[str, tuple[tuple[str, str], ...]], list[Run]] = {}
    for run, label in labelled:
        key = (label, tuple(sorted(_variant(run, trained).items())))
        members.setdefault(key, []).append(run)
    keys = sorted(members, key=lambda key: _rank(key[0]))
    labels = _distinct_labels(keys)
    return tuple(
        Group(label=label, runs=tuple(members[key]))
        for key, label in zip(keys, labels, strict=True)
    )


def _rank(label: str) -> int:
    """Order of groups: the main method, then others as given, then SimCLR, then random."""
    return {"lvm-med": 0, "simclr": 2, RANDOM_LABEL: 3}.get(label.partition(" (")[0], 1)


def _distinct_labels(keys: Sequence[tuple[str, tuple[tuple[str, str], ...]]]) -> tuple[str, ...]:
    """Add the first two differing settings to labels that several groups share."""
    labels: list[str] = []
    for label, variant in keys:
        others = [dict(other) for name, other in keys if name == label and other != variant]
        own = dict(variant)
        names = sorted({key for other in others for key in other | own})
        told = [key for key in names if any(other.get(key) != own.get(key) for other in others)]
        parts = [f"{key.rpartition('.')[2]} {own.get(key, 'unset')}" for key in told[:2]]
        text = f"{label} ({', '.join(parts)})" if parts else label
        labels.append(text if text not in labels else f"{text} [{len(labels) + 1}]")
    return tuple(labels)


def styles(labels: Sequence[str]) -> dict[str, int]:
    """Give each label of the page its colour and line style.

    The known recipes always have theirs; of several variants of one recipe the first has it.
    """
    chosen: dict[str, int] = {}
    distinct = list(dict.fromkeys(labels))
    for label in distinct:
        fixed = _FIXED_STYLES.get(label.partition(" (")[0])
        if fixed is not None and fixed not in chosen.values():
            chosen[label] = fixed
    free = [number for number in (3, 4, 5, 6, 2, 1, 0) if number not in chosen.values()]
    for label in distinct:
        if label not in chosen:
            chosen[label] = free.pop(0) if free else len(chosen) % NUM_STYLES
    return chosen
