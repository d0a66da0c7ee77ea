"""Says in words what the figures show: against random weights, and LVM-Med against SimCLR."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lvmmed.evaluation.comparison import compare_runs
from lvmmed.evaluation.statistics import welch_interval
from lvmmed.report.groups import RANDOM_LABEL, Group
from lvmmed.report.scores import (
    NUM_RESAMPLES,
    DataSet,
    JudgedGroup,
    Key,
    Score,
    has_cases,
    head_title,
    heads,
    main_metrics,
    metric_title,
    splits,
)
from lvmmed.report.training import chance_accuracy, final_figures
from lvmmed.types import InputError

MAIN_METHODS = ("lvm-med", "lvm-med-regions")
"""Recipes whose figures are also set against SimCLR."""

OTHER_METHOD = "simclr"
"""Recipe that LVM-Med is set against."""

ONE_RUN = "One side was trained once, so that another seed may turn this round."
"""What is said of a difference whose spread over training runs is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far one score lies above another, and what that may owe to chance.

    Attributes:
        value: first minus second, as a fraction of 1.
        over_cases: 95 % interval of it over test cases; None when a score has no interval.
        over_repeats: 95 % interval of it over training runs (Welch's t); None with fewer than two
            repeats on either side.
        is_paired: over_cases pairs the cases of both sides; else it joins the facing ends of
            both intervals in quadrature, which is wider than it need be.
    """

    value: float
    over_cases: tuple[float, float] | None
    over_repeats: tuple[float, float] | None
    is_paired: bool

    @property
    def verdict(self) -> str:
        """One of "above", "below" (every interval that is known leaves out 0) and "not clear"."""
        known = [ends for ends in (self.over_cases, self.over_repeats) if ends is not None]
        if self.over_cases is None:
            return "not clear"
        if all(low > 0 for low, _ in known):
            return "above"
        return "below" if all(high < 0 for _, high in known) else "not clear"


def subtract(first: JudgedGroup, second: JudgedGroup, key: Key) -> Difference:
    """Compare two encoders by one figure on the same cases.

    Args:
        first: encoder compared.
        second: encoder it is compared with.
        key: head, split and metric that both have.

    Returns:
        First minus second with its intervals.
    """
    a, b = first.scores[key], second.scores[key]
    paired = _paired_interval(first, second, key)
    return Difference(
        value=a.mean - b.mean,
        over_cases=paired or _unpaired_interval(a, b),
        over_repeats=welch_interval(first.repeats(key), second.repeats(key)),
        is_paired=paired is not None,
    )


def _paired_interval(
    first: JudgedGroup, second: JudgedGroup, key: Key
) -> tuple[float, float] | None:
    """Bootstrap of the difference; None without cases, or where the cases are not the same."""
    left, right = first.runs_with(key), second.runs_with(key)
    if not (left and right and has_cases((*left, *right))):
        return None
    head, split, metric = key
    try:
        interval = compare_runs(
            [run.folder for run in left],
            [run.folder for run in right],
            metric if head == "fine-tuned" else f"{head}.{metric}",
            split,
            num_resamples=NUM_RESAMPLES,
        )
    except InputError:
        return None  # the page marks the comparison as not paired
    return (interval.low, interval.high) if math.isfinite(interval.low) else None


def _unpaired_interval(a: Score, b: Score) -> tuple[float, float] | None:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    value = a.mean - b.mean
    return (
        value - math.hypot(a.mean - a.low, b.high - b.mean),
        value + math.hypot(a.high - a.mean, b.mean - b.low),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One encoder against another on one data set, head and split.

    Attributes:
        data: name of the data set.
        head: key of the head.
        split: split tested on.
        metric: metric compared.
        label: encoder compared.
        against: encoder it is compared with.
        score: figure of the first.
        other: figure of the second.
        difference: first minus second with its intervals.
    """

    data: str
    head: str
    split: str
    metric: str
    label: str
    against: str
    score: Score
    other: Score
    difference: Difference


def verdicts(sets: Sequence[DataSet]) -> tuple[Verdict, ...]:
    """Compare every trained encoder with random weights, and LVM-Med with SimCLR, where runs allow.

    Encoders of other backbones are not compared, for that alone would make a difference.
    Comparisons are made on test splits only, by the first metric of the main table.
    """
    found = []
    for data in sets:
        metric = main_metrics(data)[0]
        for head in heads(data):
            for split in splits(data):
                judged = [g for g in data.groups if (head, split, metric) in g.scores]
                found.extend(_pairs(data.name, (head, split, metric), judged))
    return tuple(found)


def _pairs(name: str, key: Key, judged: Sequence[JudgedGroup]) -> list[Verdict]:
    found = []
    for first in judged:
        for second in judged:
            if _is_compared(first.group, second.group):
                head, split, metric = key
                found.append(
                    Verdict(
                        data=name,
                        head=head,
                        split=split,
                        metric=metric,
                        label=first.group.label,
                        against=second.group.label,
                        score=first.scores[key],
                        other=second.scores[key],
                        difference=subtract(first, second, key),
                    )
                )
    return found


def _is_compared(first: Group, second: Group) -> bool:
    first_name, second_name = (group.label.partition(" (")[0] for group in (first, second))
    if first.backbone != second.backbone:
        return False
    if second_name == RANDOM_LABEL:
        return first_name != RANDOM_LABEL
    return first_name in MAIN_METHODS and second_name == OTHER_METHOD


def sentences(
    trained: Sequence[Group], sets: Sequence[DataSet], found: Sequence[Verdict]
) -> tuple[str, ...]:
    """Sum the report up: what was trained, how the training went, what the encoders are worth.

    Args:
        trained: groups of pre-training runs.
        sets: data sets judged on.
        found: comparisons made on them.

    Returns:
        Sentences in plain text.
    """
    return (
        *_trained_sentence(trained),
        *(text for group in trained for text in _matching_sentence(group)),
        *_verdict_sentences(found),
        *(() if found else _judged_sentence(sets)),
        *(text for data in sets for text in _size_warnings(data)),
    )


def _trained_sentence(trained: Sequence[Group]) -> tuple[str, ...]:
    if not trained:
        return ()
    parts = [f"{group.label} ({counted(len(group.runs), 'run')})" for group in trained]
    return (f"Trained without labels: {enumerated(parts)}.",)


def _matching_sentence(group: Group) -> tuple[str, ...]:
    means = final_figures(group, "matching_accuracy")
    if not means:
        return ()
    spread = f" ({min(means):.2f} to {max(means):.2f} over runs)" if len(means) > 1 else ""
    chance = chance_accuracy(group.runs[0])
    beside = f"; chance is {chance:.2f}" if chance else ""
    text = f"{group.label} matched {sum(means) / len(means):.2f} of the nodes rightly without noise"
    return (f"{text} in the last tenth of training{spread}{beside}.",)


def _verdict_sentences(found: Sequence[Verdict]) -> tuple[str, ...]:
    texts = []
    pairs = dict.fromkeys((verdict.label, verdict.against) for verdict in found)
    for label, against in pairs:
        own = [v for v in found if (v.label, v.against) == (label, against)]
        texts.append(_pair_sentence(label, against, own))
    return tuple(texts)


def _pair_sentence(label: str, against: str, own: Sequence[Verdict]) -> str:
    if len(own) == 1:
        return _single_sentence(own[0])
    counts = Counter(verdict.difference.verdict for verdict in own)
    words = {"above": "clearly above in", "below": "clearly below in", "not clear": "too close in"}
    parts = [f"{words[kind]} {counts[kind]}" for kind in words if counts[kind]]
    values = sorted(verdict.difference.value for verdict in own)
    metrics = enumerated(sorted({metric_title(verdict.metric).lower() for verdict in own}))
    return (
        f"{label} against {against}, by {metrics}: {enumerated(parts)} of {len(own)} comparisons "
        f"({points(values[0])} to {points(values[-1])} points; not adjusted for the number of "
        f"comparisons).{_one_run(own)}"
    )


def _single_sentence(verdict: Verdict) -> str:
    where = f"{verdict.data} ({verdict.split}, {head_title(verdict.head).lower()})"
    gap = verdict.difference
    reach = {
        "above": "more than the interval allows for",
        "below": "more than the interval allows for",
        "not clear": "too close to tell them apart",
    }[gap.verdict]
    if gap.over_cases is None:
        reach = "with no interval to judge it by"
    side = "above" if gap.value >= 0 else "below"
    return (
        f"{verdict.label} reaches {100 * verdict.score.mean:.1f} % "
        f"{metric_title(verdict.metric).lower()} on {where}: {100 * abs(gap.value):.1f} points "
        f"{side} {verdict.against}, {reach}.{_one_run([verdict])}"
    )


def _one_run(own: Sequence[Verdict]) -> str:
    """Warn where something is called clear by test cases alone."""
    is_by_cases = any(
        verdict.difference.verdict != "not clear" and verdict.difference.over_repeats is None
        for verdict in own
    )
    return f" {ONE_RUN}" if is_by_cases else ""


def _judged_sentence(sets: Sequence[DataSet]) -> tuple[str, ...]:
    """When nothing could be compared, say at least what was judged."""
    if not sets:
        return ()
    names = enumerated([data.name for data in sets])
    labels = list(dict.fromkeys(judged.group.label for data in sets for judged in data.groups))
    is_random = [label.startswith(RANDOM_LABEL) for label in labels]
    missing = "trained encoder" if all(is_random) else "run with random weights"
    if any(is_random) and not all(is_random):
        missing += " of the same backbone"
    return (f"Judged on {names}: {enumerated(labels)}. No {missing} to compare with.",)


def _size_warnings(data: DataSet) -> list[str]:
    """Warn where encoders whose figures stand side by side saw images of different sizes."""
    sizes: dict[str, dict[str, int]] = {}
    for judged in data.groups:
        for run in judged.group.runs:
            size = run.result.get("size_px")
            if isinstance(size, int):
                label = judged.group.label
                # where two labels would be the same they tell the size themselves
                text = label if f"size_px {size}" in label else f"{label} at {size} px"
                sizes.setdefault(run.task, {})[text] = size
    return [
        f"Warning: on {data.name} encoders were judged at different image sizes "
        f"({enumerated(list(of_task))}), which "
        "alone moves their figures; judge them all at one size, with --set size_px=NUMBER."
        for of_task in sizes.values()
        if len(set(of_task.values())) > 1
    ]


def enumerated(parts: Sequence[str]) -> str:
    """Join texts as "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted(number: int, noun: str) -> str:
    """Write "1 run", "3 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def points(value: float) -> str:
    """Write a signed difference in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
