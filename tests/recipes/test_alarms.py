"""Alarms by planted collapse and chance; what runs of the documentation log are told."""

import pytest

from lvmmed.recipes.alarms import WatchedRun, alarms
from lvmmed.ssl.table import METHODS


def judged(
    row,
    *,
    graph_size=16,
    is_last=False,
    late=(),
    method="lvm-med",
    start=(),
    batch=64,
    num_warmup=1,
):
    """Alarms of a row at step 5, after those of the second half; the run has 6 steps or 10."""
    rows = [{"step": 0, "effective_rank": 100.0, **dict(start)}]
    rows += [{"step": 5, **one} for one in late]
    run = WatchedRun(
        width=400,
        batch_size=batch,
        num_steps=6 if is_last else 10,
        num_warmup=num_warmup,
        graph_size=graph_size,
        advice=METHODS[method].advice,
    )
    return alarms([*rows, {"step": 5, **row}], run)


def matching(accuracy, **figures):
    return {"matching_accuracy": accuracy, **figures}


def test_a_healthy_row_raises_no_alarm():
    row = {"effective_rank": 90.0, "feature_std": 0.04, "matching_accuracy": 0.5}
    row.update(data_wait_frac=0.1, noise_to_affinity=0.9, noise_to_edge_affinity=3.9)
    assert judged(row, is_last=True) == {}


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"effective_rank": 9.9}, "rank", "was 100.0"),
        ({"feature_std": 0.0049}, "spread", "least 0.005"),  # 0.1 / sqrt(400)
        ({"data_wait_frac": 0.31}, "starving", "31%"),
        (matching(0.985), "saturated", "98%"),
        (matching(0.99), "saturated", "method.graph_size"),
        (matching(0.3, noise_to_affinity=1.26), "noise", "1.3 times"),
        (matching(0.3, noise_to_affinity=25.0), "noise", "lower method.noise"),
        (matching(0.3, noise_to_edge_affinity=4.46), "edge noise", "drowns the edges"),
        (matching(0.3, noise_to_edge_affinity=4.46), "edge noise", "is 4.5 times"),
        (
            matching(0.3, noise_to_edge_affinity=4.46),
            "edge noise",
            "lower method.noise or raise method.edge_weight",
        ),
    ],
)
def test_every_alarm_says_what_and_what_to_do(row, kind, says):
    found = judged(row)
    assert list(found) == [kind]
    assert found[kind].startswith("step 5: ")
    assert says in found[kind]
    assert ";" in found[kind]


def test_matching_at_chance_is_an_alarm_at_the_end_only():
    row = {"matching_accuracy": 0.12}  # below 2 / 16
    assert judged(row) == {}
    assert list(judged(row, is_last=True)) == ["matching"]
    assert judged(row, is_last=True, graph_size=None) == {}


@pytest.mark.parametrize(("graph_size", "learnt", "guessed"), [(2, 0.8, 0.7), (3, 0.7, 0.6)])
def test_small_graphs_need_not_match_twice_their_chance(graph_size, learnt, guessed):
    """Twice the chance of two nodes is 1: half way from chance to 1 is asked for instead."""
    assert judged(matching(learnt), is_last=True, graph_size=graph_size) == {}
    assert list(judged(matching(guessed), is_last=True, graph_size=graph_size)) == ["matching"]


def late_rows(*pairs):
    """Rows of the second half: (right with edges, right without)."""
    return [matching(full, matching_accuracy_first_order=first) for full, first in pairs]


def test_edges_that_spoil_for_long_are_told_with_advice():
    row = matching(0.5)
    found = judged(row, late=late_rows(*[(0.5, 0.6)] * 5))
    assert list(found) == ["edges"]
    assert "0.50 of the nodes right with them, 0.60 without, over 5 rows" in found["edges"]
    for advice in ("method.edge_ramp_steps", "method.edge_weight"):
        assert advice in found["edges"]


@pytest.mark.parametrize(
    "late",
    [
        late_rows(*[(0.5, 0.6)] * 4),  # too short
        late_rows(*[(0.5, 0.54)] * 9),  # by too little
        late_rows(*[(0.6, 0.5)] * 9),  # edges help
        late_rows(*[(0.2, 0.9)] * 9, *[(0.9, 0.9)] * 10),  # long past
        [matching(0.5)] * 9,  # no figure without edges
        [],
    ],
)
def test_edges_that_do_not_spoil_for_long_are_not(late):
    assert judged(matching(0.5), late=late) == {}


def test_alarms_of_matching_are_for_methods_with_graphs():
    row = matching(1.0, noise_to_affinity=9.0, noise_to_edge_affinity=9.0)
    assert judged(row, graph_size=None, late=late_rows(*[(0.5, 0.9)] * 9)) == {}


def learning(name, *figures, start, batch=64):
    """Alarms at the end of a run of a method, by its figure at the start and in the last third."""
    figure = METHODS[name].advice.figure
    rows = [{"step": 0, figure: start}]
    num = len(figures)
    rows += [{"step": 2 * num - 1, figure: 0.9}]  # of no account
    rows += [{"step": 2 * num + place, figure: value} for place, value in enumerate(figures)]
    run = WatchedRun(
        width=400,
        batch_size=batch,
        num_steps=3 * num,
        num_warmup=0,
        graph_size=None,
        advice=METHODS[name].advice,
    )
    return alarms(rows, run)


def test_a_method_at_chance_for_the_last_third_is_told_so_in_its_own_words():
    found = learning("byol", 0.0156, 0.0312, 0.0156, start=0.0156)  # chance 1 / 64
    assert list(found) == ["learning"]
    assert (
        "partner_accuracy is at chance over the last third (0.021, chance 0.016)"
        in (found["learning"])
    )
    assert "lower method.momentum" in found["learning"]


def test_the_chance_of_simclr_is_among_all_other_views():
    # 1 / (2 x 64 - 1) = 0.0079: 0.015 is under twice that, 0.017 is not
    assert list(learning("simclr", 0.015, 0.015, start=0.0)) == ["learning"]
    assert learning("simclr", 0.017, 0.017, start=0.0) == {}


def test_what_was_there_at_the_start_and_is_lost_is_told():
    # DINO with its defaults, 300 steps at 32 px, 64 images a step: docs/results.md
    found = learning("dino", 0.094, 0.062, 0.031, start=0.156)
    assert list(found) == ["learning"]
    assert "was 0.156 at the start and is 0.062 over the last third" in found["learning"]
    assert "method.teacher_temperature (0.04)" in found["learning"]
    assert learning("dino", 0.094, 0.078, 0.094, start=0.156) == {}


def test_few_images_are_no_evidence_that_a_method_does_not_learn():
    assert learning("byol", 0.0, 0.0, 0.0, start=0.0, batch=33) == {}  # 99 images
    assert list(learning("byol", 0.0, 0.0, 0.0, start=0.0, batch=34)) == ["learning"]


def test_a_method_that_learns_late_is_not_told_off_before_the_end():
    advice = METHODS["byol"].advice
    run = WatchedRun(
        width=400, batch_size=64, num_steps=9, num_warmup=0, graph_size=None, advice=advice
    )
    rows = [{"step": step, "partner_accuracy": 0.0} for step in range(8)]
    assert alarms(rows, run) == {}
    assert list(alarms([*rows, {"step": 8, "partner_accuracy": 0.0}], run)) == ["learning"]
    assert alarms([*rows, {"step": 8, "partner_accuracy": 0.5}], run) == {}


def test_mae_is_not_judged_by_telling_images_apart():
    assert judged({"partner_accuracy": 0.0}, method="mae", is_last=True, graph_size=None) == {}


def test_an_encoder_that_ends_narrow_is_told_what_fits_its_method():
    row = {"effective_rank": 12.0}  # of 100, as MAE's at 48 px
    assert judged(row, method="mae", graph_size=None) == {}
    found = judged(row, method="mae", graph_size=None, is_last=True)
    assert list(found) == ["narrow"]
    for words in ("was 100.0 at the start (12%)", "views.size", "fine-tuning"):
        assert words in found["narrow"]
    assert "method.centering" not in found["narrow"]
    assert judged({"effective_rank": 20.0}, method="mae", graph_size=None, is_last=True) == {}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("row", [{"effective_rank": 9.9}, {"feature_std": 0.004}])
def test_collapse_ends_with_the_advice_of_the_method(name, row):
    (text,) = judged(row, method=name, graph_size=None).values()
    assert text.endswith(METHODS[name].advice.collapse)


DEFAULT_RECIPE = {"matching_accuracy_perturbed": 0.09, "batch_accuracy_perturbed": 0.0}
"""What trained runs of the recipe `lvm-med` log under noise and a margin of 1, well trained or not.

Both figures are those of its runs; so an alarm that waits for them to rise never comes."""


def test_matching_that_is_solved_without_noise_and_margin_is_saturated_with_the_default_recipe():
    found = judged(matching(0.995, batch_accuracy=0.985, **DEFAULT_RECIPE))
    assert list(found) == ["saturated"]
    assert "98% of the nodes are matched right without noise and margin" in found["saturated"]
    for advice in ("method.graph_size", "train.batch_size", "method.margin"):
        assert advice in found["saturated"]


@pytest.mark.parametrize(
    ("accuracy", "batch_accuracy"),
    [
        (0.98, 1.0),  # graphs still teach
        (1.0, 0.98),  # the whole batch still teaches
        (0.83, 0.32),  # both do
    ],
)
def test_matching_is_not_saturated_while_graphs_or_the_whole_batch_still_teach(
    accuracy, batch_accuracy
):
    assert judged(matching(accuracy, batch_accuracy=batch_accuracy, **DEFAULT_RECIPE)) == {}


WITH_TEACHERS = ("byol", "dino", "moco")
ALIKE = {"teacher_agreement": 0.985, "partner_accuracy": 0.031}  # under 2 / 64


@pytest.mark.parametrize("name", WITH_TEACHERS)
def test_a_teacher_that_agrees_while_no_image_is_told_from_another_is_collapse(name):
    found = judged(ALIKE, method=name, graph_size=None)
    assert list(found) == ["agreement"]
    assert found["agreement"].startswith("step 5: collapse, student and teacher agree")
    assert "teacher_agreement 0.985" in found["agreement"]
    assert "partner_accuracy 0.031, chance 0.016" in found["agreement"]
    assert found["agreement"].endswith(METHODS[name].advice.collapse)


@pytest.mark.parametrize(
    "figures",
    [
        {**ALIKE, "teacher_agreement": 0.98},
        {**ALIKE, "partner_accuracy": 2 / 64},
        {"teacher_agreement": 1.0},
        {"partner_accuracy": 0.0},
    ],
)
def test_agreement_alone_or_chance_alone_is_not(figures):
    assert judged(figures, method="byol", graph_size=None) == {}


def test_agreement_is_judged_after_the_warm_up_as_teachers_start_as_copies():
    def told(num_warmup):
        return set(judged(ALIKE, method="dino", graph_size=None, num_warmup=num_warmup))

    assert told(num_warmup=5) == {"agreement"}  # the row is of step 5
    assert told(num_warmup=6) == set()
    advice = METHODS["dino"].advice
    run = WatchedRun(
        width=400, batch_size=64, num_steps=9, num_warmup=0, graph_size=None, advice=advice
    )
    assert alarms([{"step": 0, **ALIKE}], run) == {}
    assert set(alarms([{"step": 0, **ALIKE}, {"step": 1, **ALIKE}], run)) == {"agreement"}


def test_edges_that_spoilt_in_the_first_half_only_are_not_told():
    advice = METHODS["lvm-med"].advice
    run = WatchedRun(
        width=400, batch_size=64, num_steps=20, num_warmup=1, graph_size=16, advice=advice
    )

    def told(num_bad):
        bad = {"matching_accuracy": 0.5, "matching_accuracy_first_order": 0.9}
        good = {"matching_accuracy": 0.5, "matching_accuracy_first_order": 0.5}
        rows = [{"step": s, **(bad if s < num_bad else good)} for s in range(15)]
        return set(alarms(rows, run))

    assert told(10) == set()  # the half is step 10
    assert told(15) == {"edges"}
