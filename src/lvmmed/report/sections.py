"""What each section of the page shows, ready for the template: texts, tables, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from lvmmed.report.figures import curve_panel
from lvmmed.report.groups import (
    ABSENT,
    Comparison,
    Group,
    as_text,
    compare,
    flatten,
    shares_of_labels,
)
from lvmmed.report.pictures import MatchedGraph, Query, ViewSample, read_graph, read_views
from lvmmed.report.run import PRETRAIN, Run
from lvmmed.report.scores import DataSet
from lvmmed.report.training import final_figures, graph_size, series, shown_panels
from lvmmed.report.verdicts import counted

TASK_TITLES = {
    PRETRAIN: "Pre-training",
    "probe": "Probe",
    "probe-segmentation": "Segmentation probe",
    "classification": "Fine-tuning",
}
"""What a task is called on the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsTable:
    """Settings of all groups of one task."""

    title: str
    comparison: Comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Pictures of one run that stands for its group; `overlays` is one picture, a data URI."""

    label: str
    run: str
    note: str
    samples: tuple[ViewSample, ...] = ()
    graph: MatchedGraph | None = None
    queries: tuple[Query, ...] = ()
    overlays: str = ""


def task_title(task: str) -> str:
    """Name of a task for the reader."""
    return TASK_TITLES.get(task, task.replace("_", " ").replace("-", " ").capitalize())


def run_row(run: Run, label: str) -> tuple[str, ...]:
    """Cells of the runs table: name, task, encoder, data, seeds, length, time, device, notes."""
    data = run.result.get("data") or _nested(run.config, "data", "store")
    last = run.metrics[-1].get("step") if run.metrics else None
    steps = run.result.get("num_steps") or last or _nested(run.config, "train", "steps")
    length = f"{steps:,} steps" if isinstance(steps, int) else ABSENT
    if run.task != PRETRAIN:
        cases = run.result.get("num_cases")
        total = sum(
            count
            for split, count in (cases.items() if isinstance(cases, Mapping) else ())
            if str(split).startswith("test") and isinstance(count, int)
        )
        length = f"{total} test cases" if total else ABSENT
    device = run.result.get("device") or run.environment.get("device")
    return (
        run.name,
        task_title(run.task),
        label,
        str(data).rstrip("/").rpartition("/")[2] if data else ABSENT,
        ", ".join(str(seed) for seed in run.seeds) or ABSENT,
        length,
        duration(run.result.get("wall_s")),
        str(device) if device else ABSENT,
        "; ".join(run.notes),
    )


def breakable(text: str) -> Markup:
    """Escape a name and let it wrap after underscores, dashes and slashes."""
    safe = str(escape(text))
    for mark in ("_", "-", "/"):
        safe = safe.replace(mark, f"{mark}<wbr>")
    return Markup(safe)


def duration(seconds: Any) -> str:
    """Write seconds as "42 s", "3 min 05 s" or "2 h 10 min"."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _nested(values: Mapping[str, Any], *path: str) -> Any:
    for part in path:
        if not isinstance(values, Mapping):
            return None
        values = values.get(part, {})
    return values or None


def settings_tables(trained: Sequence[Group], sets: Sequence[DataSet]) -> tuple[SettingsTable, ...]:
    """Lay the settings of the groups of each task side by side, seeds left out.

    Of runs that fitted on different shares of the labels it lists all shares.
    """
    members: dict[str, dict[str, Mapping[str, Any]]] = {}
    for group in trained:
        members.setdefault(PRETRAIN, {})[_column(group, "")] = _without_seed(group.runs[0])
    for data in sets:
        for judged in data.groups:
            run = judged.group.runs[0]
            column = _column(judged.group, f" on {data.name}" if len(sets) > 1 else "")
            settings = _without_seed(run)
            shares = {share for member in judged.group.runs for share in shares_of_labels(member)}
            if "fractions" in settings:
                settings["fractions"] = sorted(shares)
            members.setdefault(run.task, {})[column] = settings
    return tuple(
        SettingsTable(title=task_title(task), comparison=compare(columns))
        for task, columns in members.items()
        if any(columns.values())
    )


def _column(group: Group, suffix: str) -> str:
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(group.seeds))
    plural = "seed" if len(set(group.seeds)) == 1 else "seeds"
    return f"{group.label}{suffix}" + (f" ({plural} {seeds})" if seeds else "")


def _without_seed(run: Run) -> dict[str, Any]:
    """Settings but the seed and, of a judging run, what its column's title says already."""
    dropped = {"seed", "seeds", "format_version"}
    if run.task != PRETRAIN:
        dropped |= {"weights", "data"}
    return {
        key: value
        for key, value in flatten(run.config).items()
        if key.rpartition(".")[2] not in dropped
    }


def environments(runs: Sequence[Run]) -> Comparison | None:
    """Lay the environments side by side, equal ones in one column; None when no run has one."""
    distinct: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for run in runs:
        if run.environment:
            flat = {
                key: value
                for key, value in flatten(run.environment).items()
                if key not in ("format_version", "warnings", "data_fingerprint")
            }
            distinct.setdefault(repr(sorted(flat.items(), key=repr)), (flat, []))[1].append(
                run.name
            )
    if not distinct:
        return None
    columns = {
        names[0] if len(names) == 1 else f"{names[0]} and {counted(len(names) - 1, 'other')}": flat
        for flat, names in distinct.values()
    }
    return compare(columns)


def seen_data(trained: Sequence[Group]) -> tuple[tuple[str, str, str, str], ...]:
    """Data sets the encoders were trained on, from their cards: encoder, name, licence, images."""
    rows: dict[tuple[str, str, str, str], None] = {}
    for group in trained:
        for run in group.runs:
            listed = run.card.get("datasets")
            for name, facts in listed.items() if isinstance(listed, Mapping) else ():
                known = facts if isinstance(facts, Mapping) else {}
                licence = known.get("licence") or "not stated"
                count = as_text(known.get("num_images", ABSENT))
                rows[(group.label, str(name), str(licence), count)] = None
    return tuple(rows)


def curve_panels(trained: Sequence[Group], styles: Mapping[str, int]) -> tuple[Markup, ...]:
    """Charts of the training, one a column that some run recorded."""
    return tuple(
        Markup(
            curve_panel(
                [g for g in trained if any(len(series(run, column)[0]) for run in g.runs)],
                styles,
                column=column,
                title=title,
                name=f"curve-{number}",
            )
        )
        for number, (column, title) in enumerate(shown_panels(trained))
    )


def final_rows(trained: Sequence[Group]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Title of each panel but the learning rate, and each group's end of training: mean, range."""
    return tuple(
        (title, tuple(_final_texts(final_figures(group, column)) for group in trained))
        for column, title in shown_panels(trained)
        if column != "learning_rate"
    )


def _final_texts(means: Sequence[float]) -> tuple[str, str]:
    if not means:
        return ABSENT, ""
    spread = f"({min(means):.3g} to {max(means):.3g})" if len(means) > 1 else ""
    return f"{sum(means) / len(means):.3g}", spread


def view_sheets(trained: Sequence[Group]) -> tuple[tuple[Shown, ...], tuple[str, ...]]:
    """Input views, one sheet for each way of making them; and notes on runs without samples."""
    sheets: dict[str, list[str]] = {}
    chosen: dict[str, tuple[Run, tuple[ViewSample, ...]]] = {}
    notes = []
    for group in trained:
        found = [(run, samples) for run in group.runs if (samples := read_views(run))]
        if not found:
            notes.append(f"{group.label}: {_no_samples(group)}")
            continue
        settings = (found[0][0].config.get("views"), _nested(found[0][0].config, "data", "store"))
        sheets.setdefault(repr(settings), []).append(group.label)
        chosen.setdefault(repr(settings), found[0])
    return tuple(
        Shown(
            label=", ".join(labels),
            run=chosen[key][0].name,
            note="the same settings of views" if len(labels) > 1 else "",
            samples=chosen[key][1],
        )
        for key, labels in sheets.items()
    ), tuple(notes)


def _no_samples(group: Group) -> str:
    return "this run has no samples" if len(group.runs) == 1 else "these runs have no samples"


def matched_graphs(trained: Sequence[Group]) -> tuple[tuple[Shown, ...], tuple[str, ...]]:
    """One matched graph of each group that matches; and notes on matching groups without one."""
    shown, notes = [], []
    for group in trained:
        for run in group.runs:
            graph = read_graph(run)
            if graph is not None:
                note = f"first of {len(group.runs)} runs" if len(group.runs) > 1 else ""
                shown.append(Shown(label=group.label, run=run.name, note=note, graph=graph))
                break
        else:
            if graph_size(group.runs[0]) is not None:
                notes.append(f"{group.label}: {_no_samples(group)} of a matched graph")
    return tuple(shown), tuple(notes)
