"""Compare trials of `learning_trials.py` seed by seed: differences of means with their intervals.

The score of a row is the mean of fourteen figures: kNN, linear and linear on 10 % of the labels
(balanced accuracy) on brain `test_in`, brain `test`, breast and chest, and the Dice of the linear
probe on masks of polyps and of breast lesions. All are tests; nothing may be chosen by them. `val`
is the mean of the nine figures of the classification tasks on val, which choices are made by.
"slices" is the percentage that `slice_retrieval.py` finds exactly, from its files, "within one"
that of the right slice or one beside it. A trial whose
seed was run in several work folders, as with different learning rates, is named `TRIAL (FOLDER)`.
Differences are paired by seed; their interval is Student's, 95 %, over seeds.

    python benchmarks/learning_score.py ROWS.jsonl [ROWS.jsonl ...] [--slices FILE.json ...] \
        --ours NAME [--against NAME ...]
"""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvmmed.evaluation.statistics import t_interval

BRAIN, CHEST, BREAST = "brain_tumor_mri", "cxr_pneumonia_224", "busi_256"
PROBES = ("knn", "linear", "linear@10%")
Places = tuple[tuple[str, str], ...]
"""(data set, key of its figure)."""
MASKS: Places = (("polyp masks", "test linear"), ("lesion masks", "test linear"))


def classification(*sets: tuple[str, str]) -> Places:
    """All probes of (data set, split) pairs."""
    return tuple((name, f"{split} {probe}") for name, split in sets for probe in PROBES)


COLUMNS: dict[str, Places] = {
    "val": classification((BRAIN, "val"), (CHEST, "val"), (BREAST, "val")),
    "score": (
        *classification((BRAIN, "test_in"), (BRAIN, "test"), (CHEST, "test"), (BREAST, "test")),
        *MASKS,
    ),
    "brain test_in": classification((BRAIN, "test_in")),
    "brain test": classification((BRAIN, "test")),
    "chest": classification((CHEST, "test")),
    "breast": classification((BREAST, "test")),
    "masks": MASKS,
    "slices": (("slices", "found"),),
    "within one": (("slices", "within one"),),
}


def value_of(row: Mapping[str, Any], places: Places) -> float | None:
    """Mean of the figures, None where the row lacks one."""
    found = [row.get(name, {}).get(key) for name, key in places]
    return None if None in found else sum(found) / len(found)


def folder_name(trial: str, seed: int) -> str:
    """Name of the folder of a trial and seed in the work folder of `learning_trials.py`."""
    return f"{trial}-seed{seed}".replace(" ", "_").replace(",", "")


def work_of(row: Mapping[str, Any]) -> str | None:
    """Work folder that the command of a row names; None in rows that keep no command."""
    words = shlex.split(row.get("command", ""))
    return words[words.index("--work") + 1] if "--work" in words else None


def read_rows(paths: Sequence[Path]) -> dict[str, dict[int, dict[str, Any]]]:
    """Rows by trial and seed; of two of one work folder the later counts."""
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    works: dict[tuple[str, int], set[str | None]] = {}
    for row in rows:
        works.setdefault((row["trial"], row["seed"]), set()).add(work_of(row))
    several = {trial for (trial, _), of in works.items() if len(of) > 1}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        trial = row["trial"]
        name = f"{trial} ({work_of(row)})" if trial in several else trial
        found.setdefault(name, {})[row["seed"]] = row
    return found


def add_slices(rows: Mapping[str, Mapping[int, dict[str, Any]]], paths: Sequence[Path]) -> None:
    """Give rows the slices that the encoder of their run folder finds."""
    found = {}
    for path in paths:
        for run, scores in json.loads(path.read_text())["encoders"].items():
            found[Path(run)] = {
                "found": 100 * scores["nearest exact"]["mean"],
                "within one": 100 * scores["nearest within_one"]["mean"],
            }
    for row in (row for seeds in rows.values() for row in seeds.values()):
        run = Path(work_of(row) or "") / folder_name(row["trial"], row["seed"]) / "run"
        if run in found:
            row["slices"] = found[run]


def means_table(rows: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """Mean of each trial over its seeds, by column."""
    lines = [_line("trial", "seeds", *COLUMNS), _line(*["---"] * (len(COLUMNS) + 2))]
    for name, seeds in rows.items():
        cells = []
        for places in COLUMNS.values():
            values = [v for row in seeds.values() if (v := value_of(row, places)) is not None]
            of = "" if len(values) == len(seeds) else f" ({len(values)} seeds)"
            cells.append(f"{sum(values) / len(values):.1f}{of}" if values else "-")
        lines.append(_line(name, " ".join(map(str, sorted(seeds))), *cells))
    return lines


def differences_table(
    rows: Mapping[str, Mapping[int, Mapping[str, Any]]], ours: str, others: Sequence[str]
) -> list[str]:
    """Ours minus each other trial over the seeds that both have, by column."""
    lines = [_line(f"{ours} minus", "seeds", *COLUMNS), _line(*["---"] * (len(COLUMNS) + 2))]
    for other in others:
        seeds = sorted(set(rows[ours]) & set(rows[other]))
        cells = [
            _difference([(rows[ours][seed], rows[other][seed]) for seed in seeds], places)
            for places in COLUMNS.values()
        ]
        lines.append(_line(other, str(len(seeds)), *cells))
    return lines


def _difference(pairs: Sequence[tuple[Any, Any]], places: Places) -> str:
    both = [(value_of(a, places), value_of(b, places)) for a, b in pairs]
    values = [a - b for a, b in both if a is not None and b is not None]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:+.1f} (1 seed)"
    found = t_interval(values)
    of = "" if len(values) == len(pairs) else f", {len(values)} seeds"
    return f"{found.estimate:+.1f} ({found.low:+.1f} to {found.high:+.1f}{of})"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--slices", nargs="*", default=[], type=Path, metavar="FILE.json")
    parser.add_argument("--ours", default="lvm-med")
    parser.add_argument("--against", nargs="*", help="trials; all others by default")
    arguments = parser.parse_args(words)
    rows = read_rows(arguments.files)
    add_slices(rows, arguments.slices)
    others = arguments.against or [name for name in rows if name != arguments.ours]
    unknown = [name for name in [arguments.ours, *others] if name not in rows]
    if unknown:
        parser.error(f"no rows of {', '.join(unknown)}; the files have {', '.join(rows)}")
    for lines in (means_table(rows), differences_table(rows, arguments.ours, others)):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
