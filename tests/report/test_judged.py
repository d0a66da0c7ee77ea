"""Notes of a data set on the page; figures by hand."""

from reference.run_folders import figure, write_judging

from lvmmed.report.judged import data_section
from lvmmed.report.run import read_runs
from lvmmed.report.scores import data_sets


def _section(tmp_path, share):
    score = {**figure(0.8, 0.7, 0.9), "undefined_share": share}
    folder = write_judging(tmp_path / "a", metrics={"test": {"linear.balanced_accuracy": score}})
    (data,) = data_sets(read_runs([folder]), ())
    return data_section(data, {"random weights": 7}, number=0)


def test_resamples_without_a_score_are_told_where_they_are_more_than_a_few(tmp_path):
    section = _section(tmp_path, 0.13)
    assert (
        "Intervals leave out resamples without a score, for want of a class: up to 13 % for "
        "balanced accuracy on test." in section.notes
    )
    (block,) = section.blocks
    assert block.rows[0][2][0].detail.endswith("13.0 % of the resamples without a score")


def test_few_resamples_without_a_score_stand_in_the_tooltip_alone(tmp_path):
    section = _section(tmp_path, 0.01)
    assert not [note for note in section.notes if "resamples" in note and "leave out" in note]
    assert section.blocks[0].rows[0][2][0].detail.endswith("1.0 % of the resamples without a score")
