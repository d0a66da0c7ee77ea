"""Learning rates tried and alarms of training, in words and tables."""

import csv
import io
from dataclasses import replace

from reference.benchmark_tables import ACCURACY, A, B, make_score, make_table

from lvmmed.evaluation.benchmark_table import Cost, Encoder, Origin, RateChoice, RateTrial
from lvmmed.evaluation.benchmark_warnings import TaskWarning
from lvmmed.report.benchmark import benchmark_sentences
from lvmmed.report.benchmark_text import protocol_sentences, to_csv, to_markdown
from lvmmed.report.benchmark_training import (
    judging_rows,
    mixture_sentences,
    origin_sentences,
    rate_lines,
    rate_rows,
    rate_sentence,
    rates_to_csv,
    warning_lines,
    warning_rows,
)
from lvmmed.report.groups import ABSENT

E_ = Encoder(method="byol", initialisation="scratch")


def choice(encoder, chosen, *trials, own=1e-3):
    tried = tuple(
        RateTrial(learning_rate=rate, val_score=score, note=note) for rate, score, note in trials
    )
    return RateChoice(encoder=encoder, seed=4, own=own, trials=tried, chosen=chosen)


CHOICES = (
    choice(A, 1e-3, (1e-4, 0.5, ""), (1e-3, 0.7125, ""), (1e-2, None, "step 3: the loss is nan")),
    choice(B, 1e-2, (1e-4, 0.5, ""), (1e-3, 0.6, ""), (1e-2, 0.7, "")),
    choice(E_, None, (1e-4, 0.5, ""), (1e-3, None, "not done yet")),
)
COSTS = (
    Cost(encoder=A, wall_s=(1.0, 2.0), device="cpu", learning_rate=1e-3),
    Cost(
        encoder=B,
        wall_s=(1.0,),
        device="cpu",
        learning_rate=1e-2,
        warnings=("seeds 0, 1: step 9: does not learn, x; do y",),
    ),
)
TABLE = make_table(
    (A, B, E_),
    (ACCURACY,),
    [
        make_score(A, ACCURACY, 0.8, per_seed=(0.7, 0.9), seeds=(0, 2), missing_seeds=(1,)),
        make_score(B, ACCURACY, 0.7, per_seed=(0.7,), seeds=(0,)),
    ],
    costs=COSTS,
    rate_choices=CHOICES,
)


def test_rates_are_told_with_their_scores_on_val_and_the_recipes_own():
    assert rate_lines(TABLE) == (
        "learning rate of lvm-med (scratch): 0.001 chosen on val; 0.0001: 50.0, "
        "0.001 (the recipe's): 71.2 and 0.01: step 3: the loss is nan",
        "learning rate of dino (scratch): 0.01 chosen on val (the largest tried, a larger one may "
        "be better); 0.0001: 50.0, 0.001 (the recipe's): 60.0 and 0.01: 70.0",
        "learning rate of byol (scratch): none chosen; 0.0001: 50.0 and 0.001 (the recipe's): not "
        "done yet",
    )
    assert [row[2] for row in rate_rows(TABLE)] == ["0.001", "0.01", ABSENT]


def test_the_chosen_rates_stand_in_every_table():
    says = "Learning rate, chosen on val at seed 4: 0.001 for lvm-med (scratch); 0.01 for dino"
    assert rate_sentence(TABLE).startswith(says)
    assert says in to_markdown(TABLE)
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert [row["learning_rate"] for row in rows] == ["0.001", "0.01", ""]


def test_every_trial_is_a_row():
    rows = list(csv.DictReader(io.StringIO(rates_to_csv(TABLE))))
    assert len(rows) == 3 + 3 + 2
    assert rows[1] == {
        "method": "lvm-med",
        "initialisation": "scratch",
        "seed": "4",
        "learning_rate": "0.001",
        "is_recipes_own": "True",
        "is_chosen": "True",
        "val_score": "0.7125",
        "note": "",
    }
    assert rows[2]["val_score"] == ""
    assert rows[2]["note"] == "step 3: the loss is nan"


def test_a_table_without_trials_says_nothing_of_rates():
    table = make_table((A,), (ACCURACY,), [make_score(A, ACCURACY, 0.8)])
    assert (rate_sentence(table), rate_lines(table), warning_rows(table)) == ("", (), ())


def test_alarms_of_training_are_listed_by_encoder():
    text = "seeds 0, 1: step 9: does not learn, x; do y"
    assert warning_rows(TABLE) == (("scratch", "dino", text),)
    assert warning_lines(TABLE) == (f"warning: dino (scratch), {text}",)


def test_warnings_of_judging_stand_in_the_lines_and_rows():
    leak = TaskWarning(task="breast", text="2 patients twice", encoders=(B.label,), is_of_all=False)
    table = replace(TABLE, costs=(), warnings=(leak, replace(leak, task="chest", is_of_all=True)))
    assert warning_lines(table) == (
        "warning: breast (dino (scratch)): 2 patients twice",
        "warning: chest (all encoders): 2 patients twice",
    )
    assert judging_rows(table) == (
        ("breast", "dino (scratch)", "2 patients twice"),
        ("chest", "all encoders", "2 patients twice"),
    )
    assert judging_rows(TABLE) == ()


def test_seeds_that_a_figure_is_without_are_counted_and_named():
    (found,) = [text for text in protocol_sentences(TABLE) if "fewer seeds than planned" in text]
    assert "1 of 3 cells (" in found
    assert "without seed 1)." in found
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert [(row["seeds"], row["missing_seeds"]) for row in rows] == [
        ("0 2", "1"),
        ("0", ""),
        ("", ""),
    ]


COMMITS = ("0.1.0+" + "0123456789ab" * 3 + "cdef", "0.1.0+" + "f" * 40 + "-dirty")


def _from(versions, devices, precisions=()):
    origin = Origin(versions=versions, devices=devices, precisions=precisions)
    return make_table((A,), (ACCURACY,), [make_score(A, ACCURACY, 0.8)], origin=origin)


def test_one_version_and_one_device_are_named_and_no_warning():
    table = _from(((COMMITS[0], 12),), (("cpu", 12),))
    assert origin_sentences(table) == (
        "Versions: 0.1.0+0123456789ab (12 cells).",
        "Devices: cpu (12 cells).",
    )
    assert mixture_sentences(table) == warning_lines(table) == ()


def test_cells_of_several_versions_and_devices_are_one_warning():
    table = _from(((COMMITS[0], 12), (COMMITS[1], 1)), (("NVIDIA H100", 9), ("cpu", 4)))
    text = (
        "cells come from 2 versions: 0.1.0+0123456789ab (12 cells) and 0.1.0+ffffffffffff-dirty "
        "(1 cell), and from 2 devices: NVIDIA H100 (9 cells) and cpu (4 cells); rows may differ "
        "for that alone; give another --out to run all cells on one footing"
    )
    assert mixture_sentences(table) == (text,)
    assert warning_lines(table) == (f"warning: {text}",)
    assert benchmark_sentences(table, ())[-1] == f"Warning: {text}."


def test_runs_in_several_precisions_are_a_warning():
    table = _from(((COMMITS[0], 3),), (("cpu", 3),), (("bf16", 2), ("fp32", 1)))
    (text,) = mixture_sentences(table)
    assert text.startswith("cells come from 2 precisions: bf16 (2 cells) and fp32 (1 cell); ")
    assert "Precisions: bf16 (2 cells) and fp32 (1 cell)." in origin_sentences(table)


def test_several_devices_alone_are_a_warning_too():
    (text,) = mixture_sentences(_from(((COMMITS[0], 3),), (("cpu", 2), ("NVIDIA H100", 1))))
    assert text.startswith("cells come from 2 devices: cpu (2 cells) and NVIDIA H100 (1 cell); ")
