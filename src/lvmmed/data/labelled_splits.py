"""Splits of a labelled set: what is missing is set aside from train, what leaks is said."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lvmmed.data.labelled_rows import Row

HELD_OUT_FRAC = 0.15
"""Share of the training pictures of each class that a missing split gets."""


def with_splits(rows: list[Row], seed: int) -> tuple[list[Row], list[str]]:
    """Set aside val and a test split where they are missing.

    Args:
        rows: with groups filled in.
        seed: start of the random choice.

    Returns:
        (rows, one warning for each split made here).
    """
    splits = {row.split for row in rows}
    has_test = any(name.startswith("test") for name in splits)
    missing = [
        name for name, is_there in (("test", has_test), ("val", "val" in splits)) if not is_there
    ]
    if not missing or "train" not in splits:
        return rows, []
    train = [row.group for row in rows if row.split == "train"]
    kept = ", no group in two splits" if len(set(train)) < len(train) else ""
    rows = set_aside(rows, missing, seed=seed)
    percent = round(100 * HELD_OUT_FRAC)
    return rows, [
        f"no split {name}: {percent} % of train were set aside for it{kept} (seed {seed})"
        for name in missing
    ]


def set_aside(rows: Sequence[Row], names: Sequence[str], *, seed: int) -> list[Row]:
    """Move whole groups from train to new splits, class by class.

    Of each class groups are taken in a random order, each that still fits into `HELD_OUT_FRAC` of
    the class; if none fits, the smallest. A group with several labels counts for the one it has
    most of. One group of a class always stays in train, and so does every group that holds the last
    training pictures of any of its labels.

    Args:
        rows: with groups filled in.
        names: splits to make.
        seed: start of the random order; the order of the rows does not matter.

    Returns:
        The rows in their order, some with a new split.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.split == "train":
            members[row.group].append(row.label)
    by_class: dict[str, list[str]] = defaultdict(list)
    for group in sorted(members):
        counts = Counter(members[group])
        by_class[min(counts, key=lambda label: (-counts[label], label))].append(group)
    new_split: dict[str, str] = {}
    in_train = Counter(label for labels in members.values() for label in labels)
    for number, label in enumerate(sorted(by_class)):
        order = np.random.default_rng([seed, number]).permutation(len(by_class[label]))
        groups = [by_class[label][i] for i in order]
        target = HELD_OUT_FRAC * sum(len(members[group]) for group in groups)
        for name in names:
            chosen = _fitting(groups, members, target, in_train)
            new_split |= dict.fromkeys(chosen, name)
            groups = [group for group in groups if group not in new_split]
    return [
        replace(row, split=new_split.get(row.group, "train")) if row.split == "train" else row
        for row in rows
    ]


def _fitting(
    groups: Sequence[str], members: Mapping[str, list[str]], target: float, in_train: Counter[str]
) -> list[str]:
    """Choose groups that together hold at most target pictures; one at least if two are there.

    Those that hold all that is left `in_train` of a label are passed over; the others' pictures are
    taken from it.
    """
    chosen: list[str] = []
    num = 0
    for group in groups:
        size = len(members[group])
        if (
            num + size <= target
            and len(chosen) + 1 < len(groups)
            and _is_spare(members[group], in_train)
        ):
            chosen.append(group)
            in_train.subtract(members[group])
            num += size
    spare = [group for group in groups if _is_spare(members[group], in_train)]
    if not chosen and len(groups) > 1 and spare:
        chosen = [min(spare, key=lambda group: len(members[group]))]
        in_train.subtract(members[chosen[0]])
    return chosen


def _is_spare(labels: Sequence[str], in_train: Counter[str]) -> bool:
    """Whether train keeps pictures of all these labels without this group of pictures."""
    return all(in_train[label] > num for label, num in Counter(labels).items())


def leak_warnings(rows: Sequence[Row]) -> list[str]:
    """Say which pairs of splits share groups, with counts; such figures are too good."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row.split].add(row.group)
    tests = sorted(name for name in splits if name.startswith("test"))
    pairs = [("train", "val"), *((seen, test) for test in tests for seen in ("train", "val"))]
    warnings = []
    for seen, held_out in pairs:
        shared = splits[seen] & splits[held_out]
        num = sum(row.group in shared for row in rows if row.split == held_out)
        if shared:
            warnings.append(
                f"{len(shared)} groups lie in both {seen} and {held_out} ({num} pictures of "
                f"{held_out}): its figures are too good; give a list with clean splits"
            )
    return warnings


def absence_warnings(rows: Sequence[Row]) -> list[str]:
    """Say which classes a split for judging does not have."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.split].add(row.label)
    everything = set().union(*labels.values())
    return [
        f"{split} has no picture of {', '.join(sorted(everything - present))}"
        for split, present in sorted(labels.items())
        if split != "train" and everything - present
    ]
