"""The page as a whole: sections, numbers, escaping, absent artifacts, atomic writing."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reference.run_folders import (
    figure,
    make_cases,
    make_neighbors,
    make_samples,
    training_rows,
    write_judging,
    write_pretrain,
)

from lvmmed.report import build_report
from lvmmed.types import InputError

DISCLAIMER = "For research; not a medical device; not for diagnosis"
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class _Balance(HTMLParser):
    """Checks that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.tags = []
        self.ids = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _text(page: str) -> str:
    """What a reader sees: no styles, no tags, spaces joined."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    page = re.sub(r"<wbr>", "", page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two seeds of lvm-med, one of SimCLR, a probe of each kind, one fine-tuning."""
    root = tmp_path_factory.mktemp("runs")
    columns = {
        "loss": [3.0, 2.0, 1.0],
        "matching_accuracy": [0.2, 0.4, 0.6],
        "matching_accuracy_first_order": [0.2, 0.3, 0.5],
        "matching_accuracy_perturbed": [0.1, 0.2, 0.3],
        "effective_rank": [10.0, 20.0, 30.0],
        "feature_std": [0.02, 0.03, 0.04],
        "learning_rate": [0.0, 0.001, 0.0],
    }
    samples = make_samples(permutation=[0, 1, 3, 2], first_order=[1, 0, 3, 2])
    runs = [
        write_pretrain(root / "lvm-0", seed=0, rows=training_rows(columns), samples=samples),
        write_pretrain(
            root / "lvm-1",
            seed=1,
            rows=training_rows(columns),
            result={"warnings": ["step 20: the loader is starving"]},
        ),
        write_pretrain(
            root / "simclr-0", recipe="simclr", rows=training_rows({"loss": [5.0, 4.0, 3.0]})
        ),
    ]
    neighbors = make_neighbors([["cyst", "cyst", "tumour"], ["tumour", "tumour", "cyst"]])
    scores = {"lvm-0": (0.831, 0.802, 0.859), "simclr-0": (0.775, 0.74, 0.81)}
    for name, score in [*scores.items(), ("random", (0.612, 0.58, 0.644))]:
        metrics = {
            "val": {"linear.balanced_accuracy": figure(0.99, 0.98, 1.0)},
            "test": {
                "linear.balanced_accuracy": figure(*score, [score[0] - 0.01, score[0] + 0.01]),
                "knn.balanced_accuracy": figure(0.555, 0.515, 0.595),
            },
            "test_in": {"linear.balanced_accuracy": figure(0.912, 0.893, 0.931)},
        }
        runs.append(
            write_judging(
                root / f"probe-{name}",
                weights=str(root / name) if name != "random" else "random",
                metrics=metrics,
                neighbors=neighbors,
                result={"num_left_out": {"leaked": 83}},
            )
        )
    outcomes = [("cyst", "cyst")] * 17 + [("cyst", "tumour")] * 3 + [("tumour", "tumour")] * 23
    runs.append(
        write_judging(
            root / "tuned",
            task="classification",
            weights=str(root / "lvm-0"),
            metrics={"test": {"balanced_accuracy": figure(0.925, 0.86, 0.975)}},
            cases=make_cases(outcomes, model="finetuned"),
        )
    )
    return runs


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    assert build_report(folders, out, title="Trial of May") == out
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_stands_alone(page):
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.tags
    assert "link" not in parser.tags
    assert len(parser.ids) == len(set(parser.ids))
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_link_inside_the_page_leads_somewhere(page):
    targets = re.findall(r'<a href="#([^"]+)"', page)
    assert len(targets) >= 8
    assert all(f'id="{target}"' in page for target in targets)


def test_every_picture_has_an_alternative_text(page):
    images = re.findall(r"<img[^>]*>", page)
    assert images
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_the_disclaimer_and_title_are_said(page):
    assert page.count(DISCLAIMER) == 2
    assert "<title>Trial of May</title>" in page


def test_the_table_holds_the_figures_with_their_intervals(page):
    text = _text(page)
    assert "83.1 (80.2 to 85.9)" in text
    assert "61.2 (58.0 to 64.4)" in text
    assert "91.2 (89.3 to 93.1)" in text
    assert "92.5 (86.0 to 97.5)" in text
    assert "seeds: 82.1, 84.1; standard deviation 1.4" in page


def test_splits_are_kept_apart_and_the_protocol_is_told(page):
    text = _text(page)
    assert (
        "Settings were selected on val; tested on test (394 cases) and "
        "test_in (in-distribution; 531 cases)." in text
    )
    assert "Intervals resample patients." in text
    assert "2 classes (cyst and tumour): chance is 50.0 % balanced accuracy." in text
    assert "Left out of the list: 83 leaked." in text
    table = re.search(r'<table class="scores">.*?</table>', page, re.DOTALL)
    assert table is not None
    assert "99.0" not in table[0]  # figures on val stay out of the main table


def test_the_summary_compares_with_random_weights_and_simclr(page):
    text = _text(page)
    assert "Trained without labels: lvm-med (2 runs) and simclr (1 run)." in text
    # test linear +21.9, test kNN 0, test_in linear 0: one of three clear
    assert (
        "lvm-med against random weights, by balanced accuracy: clearly above in 1 and too close "
        "in 2 of 3 comparisons (+0.0 to +21.9 points; not adjusted for the number of "
        "comparisons)." in text
    )
    assert "lvm-med against simclr, by balanced accuracy: " in text
    assert "Not paired" in text


def test_runs_are_listed_with_what_they_did(page):
    text = _text(page)
    assert "lvm-1 Pre-training lvm-med mixture 1 20 steps 3 min 05 s cpu" in text
    assert "probe-random Probe random weights tumours 0, 1, 2 925 test cases 12 s cpu" in text
    assert "lvm-1 : step 20: the loader is starving" in text
    assert "lvmmed pretrain --recipe simclr" in text


def test_settings_show_differences_and_the_whole_yaml(page):
    text = _text(page)
    assert "Differs in lvm-med (seeds 0, 1) simclr (seed 0)" in text
    assert "method.graph_size 4 \N{EN DASH}" in text
    assert "The same in all" in text
    assert page.count("backbone: resnet18") == 3


def test_curves_have_chance_and_a_table_of_the_end(page):
    text = _text(page)
    for title in ("Loss", "Matching accuracy, without edges", "Effective rank", "Learning rate"):
        assert title in text
    assert "chance 1/4" in text
    assert "0.6 (0.6 to 0.6)" in text
    assert "mean of 2 runs" in text


def test_views_and_matched_pairs_are_drawn(page):
    text = _text(page)
    assert "s, mirrored" in text
    assert 'x="0.2500" y="0.1250" width="0.5000" height="0.3750"' in page
    # with edges nodes 0 and 1 of 4 are right, without edges none: two corrected
    assert "2 of 4 right with edges, 0 of 4 without; 2 corrected, 0 spoilt." in text
    assert page.count('class="edge corrected"') == 3  # two pairs and the legend
    assert page.count('class="edge wrong"') == 3
    assert page.count('class="edge first"') == 3
    assert "simclr: this run has no samples." in text


def test_confusion_matrices_show_counts_and_shares(page):
    text = _text(page)
    assert "true ↓ predicted → cyst tumour cyst 17 85 % 3 15 % tumour 0 0 % 23 100 %" in text


def test_neighbours_are_told_right_and_wrong_by_more_than_colour(page):
    assert page.count('<div class="ok">') == 6  # one of two neighbours, two queries, three probes
    assert page.count('<div class="bad">') == 6
    assert "✓" in page
    assert "✗" in page


def test_environment_is_shown_once_when_all_share_it(page):
    text = _text(page)
    assert "packages.torch 2.9.0" in text
    assert "CC BY 4.0" in text


def test_the_page_is_small(page):
    assert len(page) < 1_000_000


def test_names_given_by_users_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    folder = write_judging(
        tmp_path / "a<b>",
        weights="gone",
        metrics={"test": {"linear.accuracy": figure(0.8, 0.7, 0.9)}},
        cases=make_cases([(evil, "b"), ("b", "b")], classes=("b", evil)),
        neighbors=make_neighbors([[evil, "b", evil]]),
        result={
            "classes": ["b", evil],
            "recipe": evil,
            "data": f"x {evil}",
            "warnings": [evil],
            "command": evil,
            "unit": evil,
        },
    )
    (folder / "environment.json").write_text('{"device": "<script>"}')
    (folder / "config.yaml").write_text('note: "<script>"\n')
    trained = write_pretrain(tmp_path / "<script>", recipe=evil)
    out = build_report([folder, trained], tmp_path / "r.html", title=evil)
    text = out.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []


def test_a_run_with_nothing_but_settings_is_shown_with_notes(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    for name in ("result.json", "environment.json", "card.json"):
        (folder / name).unlink()
    text = _text(build_report([folder], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "no result.json: the run has not finished" in text
    assert "a: this run has no training metrics." in text
    assert "lvm-med: this run has no samples." in text
    assert "These runs recorded no environment." in text


def test_a_probe_without_cases_or_neighbours_says_so(tmp_path):
    metrics = {"val": {"linear.accuracy": figure(0.8, 0.7, 0.9)}}
    folder = write_judging(tmp_path / "a", metrics=metrics)
    text = _text(build_report([folder], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "These runs have no cases to count" in text
    assert "These runs have no nearest neighbours." in text
    assert "No figures on a test split." in text


def test_a_refused_run_leaves_an_old_page_as_it_was(tmp_path):
    out = tmp_path / "r.html"
    out.write_text("old")
    folder = write_pretrain(tmp_path / "a")
    (folder / "samples.npz").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"samples\.npz"):
        build_report([folder], out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "r.html"]


def test_a_folder_as_the_page_is_refused(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    with pytest.raises(InputError, match=r"is a folder; name an \.html file"):
        build_report([folder], tmp_path)


def test_a_page_that_cannot_be_written_is_refused(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        build_report([folder], tmp_path / "file" / "r.html")
