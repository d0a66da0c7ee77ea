"""Builds the page: reads the runs, lays out the sections, fills the template, writes the file."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import lvmmed
from lvmmed.report.figures import DASHES
from lvmmed.report.groups import Group, pretrain_groups, styles
from lvmmed.report.judged import data_section
from lvmmed.report.run import PRETRAIN, Run, read_runs
from lvmmed.report.scores import DataSet, data_sets, head_title, metric_title
from lvmmed.report.sections import (
    breakable,
    curve_panels,
    environments,
    final_rows,
    matched_graphs,
    run_row,
    seen_data,
    settings_tables,
    view_sheets,
)
from lvmmed.report.verdicts import points, sentences, verdicts
from lvmmed.types import InputError


def build_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write one self-contained HTML page about a list of runs.

    The page needs no network and no script: images are data URIs, styles are inline. What a run
    does not have is left out with a note. The file appears whole or not at all.

    Args:
        runs: run folders of pretrain, probe and finetune, in the order they shall appear.
        out: file to write; its folder is made when absent.
        title: heading of the page; a plain one when None.

    Returns:
        The file written.

    Raises:
        InputError: no runs, a folder that is no run, a file that cannot be read or is of a newer
            format, or `out` cannot be written.
    """
    found = read_runs(runs)
    return write_page(out, _render(found, title or "Report of training runs"))


def write_page(out: Path, text: str) -> Path:
    """Write a page whole or not at all.

    Args:
        out: file to write; its folder is made when absent.
        text: the page.

    Returns:
        The file written.

    Raises:
        InputError: `out` is a folder or cannot be written.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name an .html file")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    finally:
        if temporary.is_file():
            temporary.unlink()
    return out


def headline(runs: Sequence[Path]) -> tuple[str, ...]:
    """Say in a few sentences what the runs show, the same ones that open the page.

    Runs that cannot be read are refused as in `build_report`.

    Args:
        runs: run folders.

    Returns:
        Sentences in plain text; empty when there is nothing to say.
    """
    found = read_runs(runs)
    trained = pretrain_groups(found)
    sets = data_sets(found, trained)
    return sentences(trained, sets, verdicts(sets))


def _render(runs: Sequence[Run], title: str) -> str:
    trained = pretrain_groups(runs)
    sets = data_sets(runs, trained)
    labels = [group.label for group in trained]
    labels += [judged.group.label for data in sets for judged in data.groups]
    return render_template(
        "page.html.j2",
        title=title,
        styles=styles(labels),
        dashes=[" ".join(f"{2 * length:g}" for length in dash) for dash in DASHES],
        **_sections(runs, trained, sets, styles(labels)),
    )


def render_template(name: str, **values: Any) -> str:
    """Fill a template of this package; every value is escaped unless it is `Markup`.

    Args:
        name: file name of the template.
        **values: what it shows; `written` and `version` are added.

    Returns:
        The page.
    """
    environment = Environment(
        loader=PackageLoader("lvmmed.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        points=points, breakable=breakable, head_title=head_title, metric_title=metric_title
    )
    return environment.get_template(name).render(
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=lvmmed.__version__,
        **values,
    )


def _sections(
    runs: Sequence[Run], trained: Sequence[Group], sets: Sequence[DataSet], style: dict[str, int]
) -> dict[str, Any]:
    compared = verdicts(sets)
    views, view_notes = view_sheets(trained)
    graphs, graph_notes = matched_graphs(trained)
    pretrained = [run for run in runs if run.task == PRETRAIN]
    return {
        "runs": runs,
        "run_rows": [run_row(run, _label_of(run, trained, sets)) for run in runs],
        "has_notes": any(run.notes for run in runs),
        "commands": [
            (run.name, str(run.result["command"])) for run in runs if run.result.get("command")
        ],
        "sentences": sentences(trained, sets, compared),
        "verdicts": [
            (name, [verdict for verdict in compared if verdict.data == name])
            for name in dict.fromkeys(verdict.data for verdict in compared)
        ],
        "all_paired": all(verdict.difference.is_paired for verdict in compared),
        "num_verdicts": len(compared),
        "settings": settings_tables(trained, sets),
        "trained": trained,
        "curves": curve_panels(trained, style),
        "curve_notes": [run.name for run in pretrained if not run.metrics],
        "final_rows": final_rows(trained),
        "views": views,
        "view_notes": view_notes,
        "graphs": graphs,
        "graph_notes": graph_notes,
        "data": [data_section(data, style, number=i) for i, data in enumerate(sets)],
        "environments": environments(runs),
        "seen": seen_data(trained),
        "warnings": [(run.name, text) for run in runs for text in run.warnings],
    }


def _label_of(run: Run, trained: Sequence[Group], sets: Sequence[DataSet]) -> str:
    groups = [*trained, *(judged.group for data in sets for judged in data.groups)]
    labels = (group.label for group in groups if any(member is run for member in group.runs))
    return next(labels, "")
