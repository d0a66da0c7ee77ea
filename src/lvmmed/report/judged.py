"""What the page shows of one data set: tables, plots, confusion matrices, nearest neighbours."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lvmmed.report.confusion import ConfusionMatrix, confusion_matrices
from lvmmed.report.figures import interval_plot
from lvmmed.report.groups import ABSENT
from lvmmed.report.overlays import SEGMENTING_TASKS, read_overlays
from lvmmed.report.pictures import read_neighbours
from lvmmed.report.scores import (
    MANY_UNDEFINED,
    DataSet,
    JudgedGroup,
    Key,
    Score,
    head_title,
    heads,
    main_metrics,
    metric_title,
    split_title,
    splits,
    write_interval,
    write_number,
)
from lvmmed.report.sections import Shown
from lvmmed.report.verdicts import enumerated

MAIN_HEADS = ("linear", "fine-tuned")
"""Heads whose confusion matrices are shown at once; others wait behind a click."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableCell:
    """One figure of a table: value, interval, and what a tooltip adds."""

    value: str
    interval: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TableBlock:
    """Rows of one head: (label, style, cells)."""

    head: str
    rows: tuple[tuple[str, int, tuple[TableCell, ...]], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection:
    """Everything about one data set.

    Attributes:
        name: name of the data set.
        notes: how it was judged, in sentences.
        splits: titles of the test splits; each spans `metrics` columns of the table.
        metrics: titles of the metrics.
        blocks: rows of the table by head.
        plots: dot-and-interval plots, one a split.
        every_figure: (head, encoder, split, metric, value, interval, repeats, spread).
        confusion: matrices of the main heads: (title, one matrix an encoder).
        more_confusion: those of the other heads.
        neighbours: nearest neighbours, one entry an encoder.
        overlays: true and predicted masks, one entry an encoder.
        is_segmented: masks were judged, which have no confusion matrices and no neighbours.
    """

    name: str
    notes: tuple[str, ...]
    splits: tuple[str, ...]
    metrics: tuple[str, ...]
    blocks: tuple[TableBlock, ...]
    plots: tuple[Markup, ...]
    every_figure: tuple[tuple[str, ...], ...]
    confusion: tuple[tuple[str, tuple[ConfusionMatrix, ...]], ...]
    more_confusion: tuple[tuple[str, tuple[ConfusionMatrix, ...]], ...]
    neighbours: tuple[Shown, ...]
    overlays: tuple[Shown, ...]
    is_segmented: bool


def data_section(data: DataSet, styles: Mapping[str, int], *, number: int) -> DataSection:
    """Lay out the tables, plots and pictures of one data set.

    Args:
        data: data set with its judged groups.
        styles: label -> number of colour and marker.
        number: place on the page, for unique ids.

    Returns:
        What the template shows.
    """
    tested, metrics, order = splits(data), main_metrics(data), heads(data)
    blocks = tuple(
        TableBlock(head=head_title(head), rows=_rows(data, head, tested, metrics, styles))
        for head in order
    )
    found = [matrix for judged in data.groups for matrix in confusion_matrices(judged.group)]
    return DataSection(
        name=data.name,
        notes=_notes(data, tested),
        splits=tuple(split_title(split) for split in tested),
        metrics=tuple(metric_title(metric) for metric in metrics),
        blocks=tuple(block for block in blocks if block.rows),
        plots=_plots(data, styles, metric=metrics[0], number=number),
        every_figure=_every_figure(data),
        confusion=_sheets((matrix for matrix in found if matrix.head in MAIN_HEADS), order),
        more_confusion=_sheets(
            (matrix for matrix in found if matrix.head not in MAIN_HEADS), order
        ),
        neighbours=_neighbours(data),
        overlays=_overlays(data),
        is_segmented=_is_segmented(data),
    )


def _rows(
    data: DataSet,
    head: str,
    tested: Sequence[str],
    metrics: Sequence[str],
    styles: Mapping[str, int],
) -> tuple[tuple[str, int, tuple[TableCell, ...]], ...]:
    rows = []
    for judged in data.groups:
        keys = [(head, split, metric) for split in tested for metric in metrics]
        if any(key in judged.scores for key in keys):
            cells = tuple(_cell(judged, key) for key in keys)
            rows.append((judged.group.label, styles[judged.group.label], cells))
    return tuple(rows)


def _cell(judged: JudgedGroup, key: Key) -> TableCell:
    score = judged.scores.get(key)
    if score is None:
        return TableCell(value=ABSENT, interval="", detail="not measured")
    return TableCell(
        value=write_number(score.mean, key[2]),
        interval=write_interval(score, key[2]),
        detail=_repeats_text(judged, key) + _undefined_text(score),
    )


def _undefined_text(score: Score) -> str:
    if not score.undefined_share:
        return ""
    return f"; {100 * score.undefined_share:.1f} % of the resamples without a score"


def _repeats_text(judged: JudgedGroup, key: Key) -> str:
    repeats = judged.repeats(key)
    if len(repeats) < 2:
        return "one run"
    kind = "runs" if judged.has_runs(key) else "seeds"
    values = ", ".join(write_number(value, key[2]) for value in repeats)
    return f"{kind}: {values}; standard deviation {_spread_text(repeats, key)}"


def _spread_text(repeats: Sequence[float], key: Key) -> str:
    return write_number(statistics.stdev(repeats), key[2]) if len(repeats) > 1 else ABSENT


def _every_figure(data: DataSet) -> tuple[tuple[str, ...], ...]:
    rows = []
    for key in data.keys:
        head, split, metric = key
        for judged in data.groups:
            if key in judged.scores:
                score, repeats = judged.scores[key], judged.repeats(key)
                rows.append(
                    (
                        head_title(head),
                        split,
                        metric_title(metric),
                        judged.group.label,
                        write_number(score.mean, metric),
                        write_interval(score, metric).strip("()") or ABSENT,
                        ", ".join(write_number(value, metric) for value in repeats) or ABSENT,
                        _spread_text(repeats, key),
                    )
                )
    return tuple(rows)


def _plots(
    data: DataSet, styles: Mapping[str, int], *, metric: str, number: int
) -> tuple[Markup, ...]:
    drawn = []
    for place, split in enumerate(splits(data)):
        keys = [key for key in data.keys if key[1:] == (split, metric)]
        if keys:
            svg = interval_plot(
                data,
                styles,
                keys=keys,
                title=f"{metric_title(metric)}, {split_title(split)}",
                name=f"data-{number}-plot-{place}",
            )
            drawn.append(Markup(svg))
    return tuple(drawn)


def _notes(data: DataSet, tested: Sequence[str]) -> tuple[str, ...]:
    """How the figures came about: selected on, tested on, unit, classes, cases left out."""
    results = [run.result for run in data.runs]
    notes = []
    for selected in dict.fromkeys(result.get("selected_on") for result in results):
        known = f"Settings were selected on {selected}" if selected else "Selection not recorded"
        notes.append(f"{known}; tested on {_tested_text(data, tested)}.")
    for unit in dict.fromkeys(str(result.get("unit") or "unknown") for result in results):
        notes.append(_UNIT_NOTES.get(unit, f"Unit of resampling: {unit}."))
    classes: list[str] = next((r["classes"] for r in results if r.get("classes")), [])
    if _is_segmented(data):
        notes += _segmentation_notes(data, tested)
    elif len(classes) > 1:
        few = f" ({enumerated([str(name) for name in classes])})" if len(classes) <= 8 else ""
        notes.append(
            f"{len(classes)} classes{few}: chance is {100 / len(classes):.1f} % balanced accuracy."
        )
    listed = [result["num_left_out"] for result in results if result.get("num_left_out")]
    left_out: dict[str, int] = listed[0] if listed else {}
    if left_out:
        parts = [f"{count} {reason}" for reason, count in left_out.items()]
        notes.append(f"Left out of the list: {enumerated(parts)}.")
    notes += _undefined_notes(data, tested)
    if data.fingerprint:
        notes.append(f"Fingerprint of the labelled set: {data.fingerprint[:12]}.")
    return tuple(notes)


def _undefined_notes(data: DataSet, tested: Sequence[str]) -> list[str]:
    """Say which intervals leave out more than a few resamples, for want of a score."""
    shares: dict[str, float] = {}
    for judged in data.groups:
        for (_, split, metric), score in judged.scores.items():
            if split in tested and score.undefined_share > MANY_UNDEFINED:
                name = f"{metric_title(metric).lower()} on {split}"
                shares[name] = max(shares.get(name, 0.0), score.undefined_share)
    if not shares:
        return []
    parts = [f"{100 * share:.0f} % for {name}" for name, share in shares.items()]
    return [
        "Intervals leave out resamples without a score, for want of a class: up to "
        f"{enumerated(parts)}."
    ]


def _is_segmented(data: DataSet) -> bool:
    return any(run.task in SEGMENTING_TASKS for run in data.runs)


def _segmentation_notes(data: DataSet, tested: Sequence[str]) -> list[str]:
    """How Dice is meant, what needs no encoder, and how fine the maps are."""
    results = [run.result for run in data.runs]
    classes: list[str] = next((r["classes"] for r in results if r.get("classes")), [])
    many = f" and {len(classes)} classes" if len(classes) > 1 else ""
    notes = [
        f"Dice and IoU: means over cases{many}; a case empty in truth and prediction counts 1, "
        "empty in one of them 0."
    ]
    known = [result.get("dice_of_foreground_everywhere") for result in results]
    plain = next((values for values in known if isinstance(values, Mapping)), {})
    parts = [
        f"{write_number(plain[split], 'dice')} % on {split}" for split in tested if split in plain
    ]
    if parts:
        notes.append(f"Calling every pixel foreground gives Dice {enumerated(parts)}.")
    sizes = dict.fromkeys(
        f"{' x '.join(map(str, result['map_size']))} positions at {result.get('size_px')} px"
        for result in results
        if result.get("map_size")
    )
    if sizes:
        notes.append(f"Feature maps: {enumerated(list(sizes))}; outlines can be no finer.")
    return notes


_UNIT_NOTES = {
    "patient": "Intervals resample patients.",
    "file": "Patients are unknown: intervals resample cases by identity of the file.",
}


def _tested_text(data: DataSet, tested: Sequence[str]) -> str:
    parts = []
    for split in tested:
        counts = sorted(
            {
                int(count)
                for run in data.runs
                if isinstance(cases := run.result.get("num_cases"), Mapping)
                and isinstance(count := cases.get(split), int)
            }
        )
        sizes = " or ".join(f"{count:,}" for count in counts)
        title = split_title(split).removesuffix(")")
        joined = f"{title}; " if "(" in title else f"{title} ("
        parts.append(f"{joined}{sizes} cases)" if sizes else split_title(split))
    return enumerated(parts) or "no test split"


def _sheets(
    matrices: Iterable[ConfusionMatrix], order: Sequence[str]
) -> tuple[tuple[str, tuple[ConfusionMatrix, ...]], ...]:
    """Put the matrices of one head and split side by side, heads in the order of the tables."""
    sheets: dict[tuple[int, str, str], list[ConfusionMatrix]] = {}
    for matrix in matrices:
        place = order.index(matrix.head) if matrix.head in order else len(order)
        sheets.setdefault((place, matrix.head, matrix.split), []).append(matrix)
    return tuple(
        (f"{head_title(head)}, {split_title(split)}", tuple(sheets[place, head, split]))
        for place, head, split in sorted(sheets)
    )


def _neighbours(data: DataSet) -> tuple[Shown, ...]:
    shown = []
    for judged in data.groups:
        for run in judged.group.runs:
            queries = read_neighbours(run)
            if queries:
                shown.append(
                    Shown(label=judged.group.label, run=run.name, note="", queries=queries)
                )
                break
    return tuple(shown)


def _overlays(data: DataSet) -> tuple[Shown, ...]:
    shown = []
    for judged in data.groups:
        for run in judged.group.runs:
            picture = read_overlays(run)
            if picture:
                shown.append(
                    Shown(label=judged.group.label, run=run.name, note="", overlays=picture)
                )
                break
    return tuple(shown)
