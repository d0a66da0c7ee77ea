"""The page of a benchmark as a whole."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from reference.benchmark_cells import make_benchmark
from reference.benchmark_tables import (
    ACCURACY,
    KAPPA,
    NASTY,
    A,
    B,
    C,
    make_score,
    make_small_table,
    make_table,
)

from lvmmed.evaluation.benchmark_ranking import rank_table
from lvmmed.evaluation.benchmark_scoring import build_benchmark_table
from lvmmed.evaluation.benchmark_table import Encoder
from lvmmed.evaluation.benchmark_warnings import TaskWarning
from lvmmed.report.benchmark import benchmark_sentences, build_benchmark_report
from lvmmed.types import InputError

VOID = {"meta", "br", "wbr"}


class _Balance(HTMLParser):
    """Checks that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _text(page):
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    page = re.sub(r"<wbr>", "", page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def measured():
    """Three methods, two initialisations, all tasks, one cell missing."""
    plan, cells, costs = make_benchmark(
        methods=("lvm-med", "simclr", "random weights"), num_seeds=2, leave_out={(1, 0)}
    )
    return build_benchmark_table(plan, cells, costs=costs, num_resamples=100, num_flips=200)


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "benchmark.html"
    assert build_benchmark_report(measured, out) == out
    assert [path.name for path in out.parent.iterdir()] == ["benchmark.html"]
    return out.read_text(encoding="utf-8")


def _check(page):
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert not {"script", "link", "img"} & set(parser.tags)
    assert len(parser.ids) == len(set(parser.ids))
    assert all(address.startswith("#") for address in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert not re.search(r"@import|url\((?!#)", page)
    targets = re.findall(r'<a href="#([^"]+)"', page)
    assert all(f'id="{target}"' in page for target in targets)


def test_the_page_is_well_formed_and_stands_alone(page):
    _check(page)
    assert page.count("For research; not a medical device; not for diagnosis") == 2


def test_every_section_is_there(page):
    text = _text(page)
    for heading in (
        "Benchmark: made-up",
        "In distribution",
        "Out of distribution",
        "Ranks",
        "lvm-med against the others",
        "Costs",
        "Missing",
        "Data and commands",
    ):
        assert f" {heading} " in f" {text} "
    assert "simclr (scratch) brain-mri-4 Balanced accuracy, linear probe not run" in text
    assert "lvmmed pretrain --recipe lvm-med" in text
    assert "fingerprint " in text


def test_figures_of_the_page_are_those_of_the_table(measured, page):
    text = _text(page)
    cell = measured.cells[0]
    low, high = cell.ci95
    assert f"{100 * cell.mean:.1f} ({100 * low:.1f} to {100 * high:.1f})" in text
    # 7 primary columns x 2 initialisations x 2 others, less simclr's missing one
    assert "adjusted over all 27 comparisons" in text
    assert "Missing: 1 of 48 cells." in text


def test_every_primary_column_is_drawn_and_ranks_are_drawn_apart(page):
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert sum(label.startswith("Mean ranks, ") for label in labels) == 4
    assert len(labels) == 4 + 7


def test_sentences_sum_up_what_was_found(measured):
    sentences = benchmark_sentences(measured, rank_table(measured))
    assert sentences[0] == (
        "3 methods from scratch and imagenet on 5 tasks: 47 of 48 cells have a score."
    )
    assert sentences[1].startswith(
        "Ranks over tasks and seeds, in distribution, from scratch: lvm-med has the best mean "
        "rank, 1.00 of 2; "
    )
    assert re.search(r"lvm-med against the other methods, in distribution: .* of 19", sentences[-2])


def test_methods_that_share_the_best_mean_rank_are_all_named():
    """Two tasks of two seeds, three methods, each block ranked by hand."""
    rows = {  # breast with seeds 0 and 1, retina with seeds 0 and 1
        # ranks 1, 2, 2, 2: mean 1.75; by means of 0.8 and 0.775: 1.5 and 2, mean 1.75
        "vicreg": (0.9, 0.7, 0.8, 0.75),
        # ranks 2, 3, 1, 1: mean 1.75; by means of 0.7 and 0.85: 3 and 1, mean 2
        "byol": (0.8, 0.6, 0.9, 0.8),
        # ranks 3, 1, 3, 3: mean 2.5; by means of 0.8 and 0.7: 1.5 and 3, mean 2.25
        "dino": (0.7, 0.9, 0.7, 0.7),
    }
    encoders = [Encoder(method=name, initialisation="scratch") for name in rows]
    cells = [
        make_score(encoder, column, sum(values) / 2, per_seed=values)
        for encoder, scores in zip(encoders, rows.values(), strict=True)
        for column, values in ((ACCURACY, scores[:2]), (KAPPA, scores[2:]))
    ]
    table = make_table(encoders, (ACCURACY, KAPPA), cells)
    # CD of 3 methods: 2.343 sqrt(3 x 4 / 6 N): 1.66 for 4 blocks, 2.34 for 2
    assert benchmark_sentences(table, rank_table(table))[1] == (
        "Ranks over tasks and seeds, in distribution, from scratch: byol and vicreg share the best "
        "mean rank, 1.75 of 3; not told apart from them: dino (critical difference 1.66). By whole "
        "tasks, the stricter reading: vicreg has the best mean rank, 1.75 of 3; not told apart "
        "from it: byol and dino (critical difference 2.34)."
    )


def test_a_start_whose_methods_cannot_be_ranked_is_named():
    table = make_small_table()
    sentences = benchmark_sentences(table, rank_table(table))
    left = [text for text in sentences if text.startswith("No ranking")]
    assert left == [  # one method has both scores; imagenet has one method only
        "No ranking, in distribution, from scratch: fewer than two methods have a score in every "
        "task."
    ]


def test_learning_rates_and_warnings_of_training_have_their_sections(tmp_path):
    table = make_small_table()
    text = _text(build_benchmark_report(table, tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "scratch lvm-med 0.0003 0.0003: 90.0; 0.001 (the recipe's): " in text
    assert "the smallest tried, a smaller one may be better" in text
    assert "Warnings of training What the alarms" in text
    assert "scratch lvm-med seed 1: step 9: a|b_c" in text


def test_warnings_of_judging_have_their_section(tmp_path):
    leak = TaskWarning(task="breast", text=f"leak {NASTY}", encoders=(A.label,), is_of_all=True)
    table = replace(make_small_table(), warnings=(leak,))
    page = build_benchmark_report(table, tmp_path / "a.html").read_text(encoding="utf-8")
    _check(page)
    assert "breast all encoders leak a|b_c" in _text(page)
    assert 'id="judging-warnings"' in page
    plain = build_benchmark_report(make_small_table(), tmp_path / "b.html").read_text()
    assert 'id="judging-warnings"' not in plain


def test_the_headline_leaves_given_weights_out_of_the_ranks_by_seed():
    cells = [
        make_score(e, c, mean, per_seed=(mean, mean), is_given=e is B)
        for c in (ACCURACY, KAPPA)
        for e, mean in ((A, 0.8), (B, 0.9), (C, 0.7))
    ]
    table = make_table((A, B, C), (ACCURACY, KAPPA), cells)
    sentence = benchmark_sentences(table, rank_table(table))[1]
    assert "lvm-med has the best mean rank, 1.00 of 2;" in sentence
    assert "reading: dino has the best mean rank, 1.00 of 3;" in sentence
    assert sentence.endswith("Given weights (dino) are ranked by whole tasks alone.")
    table = replace(table, cells=tuple(cells[:2] + cells[3:5]), encoders=(A, B))
    sentence = benchmark_sentences(table, rank_table(table))[1]
    assert sentence.startswith(
        "Ranks over whole tasks, in distribution, from scratch: dino has the best mean rank, 1.00 "
        "of 2;"
    )
    assert "No ranking by seeds: fewer than two trained methods" in sentence


def test_comparisons_of_one_seed_are_counted_apart():
    table = make_small_table()
    rows = tuple(replace(row, over_seeds=None) for row in table.comparisons)
    table = replace(table, comparisons=rows)
    sentence = benchmark_sentences(table, rank_table(table))[-1]
    assert "apart by one seed alone in 1 and not clear in 1 of 2 comparisons." in sentence


def test_names_are_escaped(tmp_path):
    page = build_benchmark_report(make_small_table(), tmp_path / "a.html", title=NASTY).read_text()
    _check(page)
    assert "<i>" not in page
    assert html.unescape(page).count("<i>$x$</i>") >= 4


@pytest.mark.parametrize(
    ("encoders", "columns", "cells"),
    [
        ((), (), ()),
        ((A,), (), ()),
        ((A, B), (ACCURACY,), ()),
        ((A,), (ACCURACY,), (make_score(A, ACCURACY, 0.5),)),
    ],
)
def test_empty_and_one_method_benchmarks_have_a_page(tmp_path, encoders, columns, cells):
    table = make_table(encoders, columns, cells, reference="lvm-med" if encoders else None)
    page = build_benchmark_report(table, tmp_path / "a.html").read_text(encoding="utf-8")
    _check(page)
    assert 'id="ranks"' not in page
    assert 'id="comparisons"' not in page


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; name an .html file"):
        build_benchmark_report(make_small_table(), tmp_path)
