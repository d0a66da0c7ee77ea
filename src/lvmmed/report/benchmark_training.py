"""What a benchmark says of the training behind its figures: learning rates tried, and alarms."""

import csv
import io
import re
from collections.abc import Sequence

from lvmmed.evaluation.benchmark_table import BenchmarkTable, RateChoice, RateTrial
from lvmmed.evaluation.benchmark_warnings import TaskWarning
from lvmmed.report.groups import ABSENT
from lvmmed.report.scores import MANY_UNDEFINED
from lvmmed.report.verdicts import counted, enumerated

_COMMIT = re.compile(r"([0-9a-f]{12})[0-9a-f]{28}")
"""A whole commit, and as much of it as is shown."""

RATE_FIELDS = (
    "method",
    "initialisation",
    "seed",
    "learning_rate",
    "is_recipes_own",
    "is_chosen",
    "val_score",
    "note",
)
"""Columns of `rates_to_csv`."""


def rate_sentence(table: BenchmarkTable) -> str:
    """Say which learning rates were chosen, in one sentence; empty where none was tried."""
    encoders: dict[float, list[str]] = {}
    for choice in table.rate_choices:
        if choice.chosen is not None:
            encoders.setdefault(choice.chosen, []).append(choice.encoder.label)
    if not encoders:
        return ""
    parts = [f"{rate:g} for {enumerated(encoders[rate])}" for rate in sorted(encoders)]
    seed = table.rate_choices[0].seed
    return f"Learning rate, chosen on val at seed {seed}: {'; '.join(parts)}."


def rate_lines(table: BenchmarkTable) -> tuple[str, ...]:
    """Say how each learning rate was chosen, a line an encoder."""
    return tuple(
        f"learning rate of {choice.encoder.label}: {_outcome(choice)}; "
        f"{enumerated([_trial_text(choice, trial) for trial in choice.trials])}"
        for choice in table.rate_choices
    )


def _outcome(choice: RateChoice) -> str:
    if choice.chosen is None:
        return "none chosen"
    where = rate_note(choice)
    return f"{choice.chosen:g} chosen on val" + (f" ({where})" if where else "")


def _trial_text(choice: RateChoice, trial: RateTrial) -> str:
    whose = " (the recipe's)" if trial.learning_rate == choice.own else ""
    score = trial.note if trial.val_score is None else f"{100 * trial.val_score:.1f}"
    return f"{trial.learning_rate:g}{whose}: {score}"


def rate_note(choice: RateChoice) -> str:
    """What a reader of a chosen learning rate must know; empty where there is nothing."""
    if not choice.is_at_edge:
        return ""
    is_largest = choice.chosen == choice.trials[-1].learning_rate
    kind, beyond = ("largest", "larger") if is_largest else ("smallest", "smaller")
    return f"the {kind} tried, a {beyond} one may be better"


def rate_rows(table: BenchmarkTable) -> tuple[tuple[str, ...], ...]:
    """Lay out the trials.

    Args:
        table: results.

    Returns:
        (start, method, chosen, trials with their scores on val, note), one an encoder.
    """
    return tuple(
        (
            choice.encoder.initialisation,
            choice.encoder.method,
            ABSENT if choice.chosen is None else f"{choice.chosen:g}",
            "; ".join(_trial_text(choice, trial) for trial in choice.trials),
            rate_note(choice),
        )
        for choice in table.rate_choices
    )


def rates_to_csv(table: BenchmarkTable) -> str:
    """Write one row for every learning rate tried, scores in fractions of 1.

    Args:
        table: results.

    Returns:
        CSV with the header `RATE_FIELDS`; a score that is not there is an empty field.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, RATE_FIELDS, lineterminator="\n")
    writer.writeheader()
    for choice in table.rate_choices:
        for trial in choice.trials:
            writer.writerow(
                {
                    "method": choice.encoder.method,
                    "initialisation": choice.encoder.initialisation,
                    "seed": choice.seed,
                    "learning_rate": trial.learning_rate,
                    "is_recipes_own": trial.learning_rate == choice.own,
                    "is_chosen": trial.learning_rate == choice.chosen,
                    "val_score": trial.val_score,
                    "note": trial.note,
                }
            )
    return stream.getvalue()


def warning_rows(table: BenchmarkTable) -> tuple[tuple[str, str, str], ...]:
    """List what alarms said of the training: (start, method, text)."""
    return tuple(
        (cost.encoder.initialisation, cost.encoder.method, text)
        for cost in table.costs
        for text in cost.warnings
    )


def warning_lines(table: BenchmarkTable) -> tuple[str, ...]:
    """Alarms of training and warnings of judging, a line each, and one where origins are mixed."""
    alarms = (f"{cost.encoder.label}, {text}" for cost in table.costs for text in cost.warnings)
    judging = _judging_texts(table)
    return tuple(f"warning: {text}" for text in (*alarms, *judging, *mixture_sentences(table)))


def judging_rows(table: BenchmarkTable) -> tuple[tuple[str, str, str], ...]:
    """List what the runs that judged warn of: (task, encoders, text)."""
    return tuple((one.task, _whose(one), one.text) for one in table.warnings)


def judging_sentences(table: BenchmarkTable) -> tuple[str, ...]:
    """The same as a footnote of one sentence; empty where nothing is warned of."""
    texts = _judging_texts(table)
    return (f"Warnings of judging: {'; '.join(texts)}.",) if texts else ()


def _judging_texts(table: BenchmarkTable) -> tuple[str, ...]:
    return tuple(f"{one.task} ({_whose(one)}): {one.text.rstrip('.')}" for one in table.warnings)


def _whose(warning: TaskWarning) -> str:
    return "all encoders" if warning.is_of_all else enumerated(warning.encoders)


def fewer_seeds(table: BenchmarkTable) -> list[str]:
    """Name the cells of fewer seeds than planned, those of one task and encoder once."""
    return list(
        dict.fromkeys(
            f"{cell.encoder.label} on {cell.column.task} without seed "
            f"{', '.join(map(str, cell.missing_seeds))}"
            for cell in table.cells
            if cell.missing_seeds
        )
    )


def undefined_sentences(table: BenchmarkTable) -> tuple[str, ...]:
    """Say where intervals leave out more than a few resamples, for want of a score."""
    parts: dict[str, int] = {}
    for cell in table.cells:
        if cell.ci95 is not None and cell.num_undefined > MANY_UNDEFINED * table.num_resamples:
            title = cell.column.title
            parts[title] = max(parts.get(title, 0), cell.num_undefined)
    if not parts:
        return ()
    shares = [f"{100 * n / table.num_resamples:.0f} % on {title}" for title, n in parts.items()]
    return (
        "Intervals leave out resamples without a score, for want of a class: up to "
        f"{enumerated(shares)}.",
    )


def origin_sentences(table: BenchmarkTable) -> tuple[str, ...]:
    """Name every version, device and precision behind the cells, and how many cells each."""
    return tuple(
        f"{noun.capitalize()}s: {_origins(found)}."
        for noun, found in _origins_by_noun(table)
        if found
    )


def mixture_sentences(table: BenchmarkTable) -> tuple[str, ...]:
    """Warn in one sentence of cells that come from several versions, devices or precisions."""
    parts = [
        f"{counted(len(found), noun)}: {_origins(found)}"
        for noun, found in _origins_by_noun(table)
        if len(found) > 1
    ]
    if not parts:
        return ()
    remedy = "rows may differ for that alone; give another --out to run all cells on one footing"
    return (f"cells come from {', and from '.join(parts)}; {remedy}",)


def _origins_by_noun(
    table: BenchmarkTable,
) -> tuple[tuple[str, Sequence[tuple[str, int]]], ...]:
    origin = table.origin
    return (
        ("version", origin.versions),
        ("device", origin.devices),
        ("precision", origin.precisions),
    )


def _origins(found: Sequence[tuple[str, int]]) -> str:
    """Names with their numbers of cells, commits shortened."""
    shown = [(_COMMIT.sub(r"\1", name), number) for name, number in found]
    return enumerated([f"{name} ({counted(number, 'cell')})" for name, number in shown])
