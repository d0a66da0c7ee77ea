"""CSV, Markdown and LaTeX of a table put together by hand; escaping checked by reading it back."""

import csv
import io
import re

import pytest
from reference.benchmark_tables import (
    ACCURACY,
    KAPPA,
    NASTY,
    SHIFTED,
    A,
    B,
    C,
    make_score,
    make_small_table,
    make_table,
)

from lvmmed.evaluation.benchmark_table import Column
from lvmmed.evaluation.benchmark_warnings import TaskWarning
from lvmmed.report.benchmark_text import (
    CELL_FIELDS,
    COMPARISON_FIELDS,
    column_detail,
    comparisons_to_csv,
    escape_latex,
    escape_markdown,
    protocol_sentences,
    to_csv,
    to_latex,
    to_markdown,
)


@pytest.fixture(scope="module")
def table():
    return make_small_table()


def _rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_for_every_planned_cell_with_all_digits(table):
    rows = _rows(to_csv(table))
    assert len(rows) == 4 * 3
    assert tuple(rows[0]) == CELL_FIELDS
    first = rows[0]
    assert (first["method"], first["task"], first["distribution"]) == ("lvm-med", "breast", "in")
    assert float(first["mean"]) == 0.8314
    assert [float(value) for value in first["per_seed"].split()] == [0.82, 0.8428]
    assert float(first["seed_std"]) == pytest.approx(0.0228 / 2**0.5)
    assert (first["is_best"], first["p_against_best"]) == ("True", "")
    assert first["commands"] == "lvmmed probe --weights lvm-med"
    assert rows[2]["distribution"] == "shifted"


def test_csv_leaves_fields_without_a_number_empty_and_says_why(table):
    rows = {
        (row["method"], row["metric"], row["initialisation"]): row for row in _rows(to_csv(table))
    }
    undefined = rows["dino", "quadratic_kappa", "scratch"]
    assert (undefined["mean"], undefined["status"]) == ("", "undefined")
    missing = rows[NASTY, "quadratic_kappa", "scratch"]
    assert (missing["mean"], missing["num_cases"], missing["status"]) == ("", "", "out of memory")


def test_csv_gives_names_back_as_they_were(table):
    assert _rows(to_csv(table))[6]["method"] == NASTY
    assert _rows(comparisons_to_csv(table))[1]["other"] == NASTY


def test_comparisons_are_written_with_their_tests(table):
    rows = _rows(comparisons_to_csv(table))
    assert tuple(rows[0]) == COMPARISON_FIELDS
    assert [float(rows[0][key]) for key in ("difference", "ci95_low", "p_value", "p_holm")] == [
        0.0114,
        -0.01,
        0.4,
        0.4,
    ]
    assert [row["verdict"] for row in rows] == ["not clear", "better"]
    assert [row["over_seeds_low"] for row in rows] == ["-0.02", "0.28"]


def _markdown_cells(line):
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells]


def test_markdown_marks_the_best_and_what_cannot_be_told_from_it(table):
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert _markdown_cells(lines[0]) == [
        "Start",
        "Method",
        "breast: Accuracy, linear probe",
        "retina: Quadratic kappa",
    ]
    assert "| scratch | lvm-med | **83.1** (80.2 to 85.9) | 0.501 (-0.100 to 0.900) |" in lines
    assert "| scratch | dino | 82.0\N{DAGGER} (79.0 to 85.0) | - |" in lines
    assert "| imagenet | lvm-med | 90.0 | 0.250 |" in lines


def test_markdown_keeps_distributions_in_tables_of_their_own(table):
    inside, outside = to_markdown(table).split("**Out of distribution**")
    assert "**In distribution**" in inside
    assert "breast: Accuracy, linear probe, other" in outside
    assert "70.0" in outside
    assert "70.0" not in inside


def test_markdown_rows_have_one_cell_a_column_whatever_the_names(table):
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert {len(_markdown_cells(line)) for line in lines} == {4, 3}
    names = {_markdown_cells(line)[1] for line in lines}
    assert " ".join(NASTY.split()) in names


def test_missing_and_undefined_cells_are_counted_and_never_zero(table):
    text = to_markdown(table)
    assert "Missing: 1 of 12 cells. Undefined on their cases: 1 of 12 cells." in text
    assert " 0.0 " not in text
    assert "-: no figure" in text


def _short_table():
    """A complete cell, one without two of its seeds, one that no test could set beside the best."""
    cells = [
        make_score(A, ACCURACY, 0.8, is_best=True),
        make_score(B, ACCURACY, 0.9, per_seed=(0.9,), seeds=(0,), missing_seeds=(1, 2)),
        make_score(C, ACCURACY, 0.7, ci95=(0.6, 0.8), is_untested=True, num_undefined=260),
    ]
    leak = "2 patients lie in train and test"
    warnings = (
        TaskWarning(task="breast", text=leak, encoders=(A.label, B.label), is_of_all=True),
        TaskWarning(task="retina", text="no split test.", encoders=(A.label,), is_of_all=False),
    )
    return make_table((A, B, C), (ACCURACY,), cells, warnings=warnings)


def test_cells_of_fewer_seeds_are_marked_and_named_in_markdown_and_latex():
    named = "(dino (scratch) on breast without seed 1, 2)"
    text, latex = to_markdown(_short_table()), to_latex(_short_table())
    assert "| scratch | dino | 90.0\N{DOUBLE DAGGER} |" in text
    assert r"dino & 90.0$^\ddagger$ \\" in latex
    for form in (text, latex):
        assert f"of fewer seeds than planned, never called best: 1 of 3 cells {named}." in form


def test_a_cell_that_could_not_be_tested_is_marked_and_the_legend_says_so():
    assert "70.0\N{DAGGER} (60.0 to 80.0)" in to_markdown(_short_table())
    assert r"\underline{70.0}" in to_latex(_short_table())
    for form in (to_markdown(_short_table()), to_latex(_short_table())):
        assert "or no test possible" in form
        # 260 of 2000 resamples
        assert (
            "Intervals leave out resamples without a score, for want of a class: up to 13" in form
        )


def test_warnings_of_judging_are_footnotes():
    for form in (to_markdown(_short_table()), to_latex(_short_table())):
        assert (
            "Warnings of judging: breast (all encoders): 2 patients lie in train and test; "
            "retina (lvm-med (scratch)): no split test." in form
        )


def test_the_protocol_is_told(table):
    assert protocol_sentences(table)[0] == (
        "Means over seeds (1 to 2 a cell) in percent (kappa as it is), with 95 % intervals over "
        "patients (2000 bootstrap resamples)."
    )
    files = make_table((A,), (ACCURACY,), [make_score(A, ACCURACY, 0.5, unit="file")])
    assert protocol_sentences(files) == (
        "Means over seeds (1 a cell) in percent, with 95 % intervals over files (2000 bootstrap "
        "resamples).",
    )


def test_latex_has_groups_of_columns_marks_and_dashes(table):
    text = to_latex(table)
    assert (
        r" & \multicolumn{2}{c}{In distribution} & \multicolumn{1}{c}{Out of distribution} \\"
        in text
    )
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    assert r"\begin{tabular}{lccc}" in text
    assert r"lvm-med & \textbf{83.1} {\scriptsize (80.2--85.9)} & 0.501" in text
    assert r"dino & \underline{82.0} {\scriptsize (79.0--85.0)} & - & 60.0 \\" in text
    assert r"\multicolumn{4}{l}{\textit{imagenet}} \\" in text
    for rule in (r"\toprule", r"\bottomrule", r"\end{adjustbox}", r"\end{table}"):
        assert text.count(rule) == 1
    assert text.count(r"\midrule") == 2


def test_latex_rows_have_one_cell_a_column_and_braces_close(table):
    text = to_latex(table)
    rows = [
        line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")


def test_signs_of_latex_are_escaped():
    assert escape_latex("a_b & 5% $ # {x} ~ ^ \\ <\n> |") == (
        r"a\_b \& 5\% \$ \# \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{} \textgreater{} \textbar{}"
    )


def test_signs_of_markdown_are_escaped():
    assert escape_markdown("a|b *c* _d_ `e` <f> [g]\nh\\") == (
        r"a\|b \*c\* \_d\_ \`e\` \<f\> \[g\] h\\"
    )


@pytest.mark.parametrize(
    ("column", "detail"),
    [
        (ACCURACY, "Accuracy, linear probe"),
        (KAPPA, "Quadratic kappa"),
        (SHIFTED, "Accuracy, linear probe, other"),
        (Column(task="t", split="test", metric="knn.auroc"), "AUROC, kNN probe"),
        (
            Column(task="t", split="test", metric="linear@10%.dice"),
            "Dice, linear probe, 10 % of the labels",
        ),
    ],
)
def test_a_column_says_what_it_holds(column, detail):
    assert column_detail(column) == detail


@pytest.mark.parametrize(
    ("encoders", "columns", "cells"),
    [
        ((), (), ()),
        ((A, B), (), ()),
        ((), (ACCURACY,), ()),
        ((A, B), (ACCURACY,), ()),
        ((A,), (ACCURACY,), (make_score(A, ACCURACY, 0.5),)),
    ],
)
def test_empty_and_one_method_tables_are_written(encoders, columns, cells):
    table = make_table(encoders, columns, cells)
    assert len(_rows(to_csv(table))) == len(encoders) * len(columns)
    assert _rows(comparisons_to_csv(table)) == []
    assert r"\end{tabular}" in to_latex(table)
    assert r"\textbf" not in to_latex(table)
    assert to_markdown(table).endswith("-: no figure.\n")
    assert ("Missing" in to_markdown(table)) == (len(encoders) * len(columns) > len(cells))
