"""Tasks are checked before anything runs, and their settings reach the images too."""

import pytest
from reference.benchmark_runs import make_chain

from lvmmed.recipes import benchmark_work
from lvmmed.recipes.benchmark_suite import SuiteTask
from lvmmed.recipes.benchmark_work import refuse_bad_task, run_cell
from lvmmed.types import InputError


def task(kind="probe", metrics=("linear.accuracy",), overrides=()):
    return SuiteTask(name="t", kind=kind, data="d", metrics=metrics, overrides=overrides)


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [
        ("probe", ("linear.accuracy", "knn.auroc", "linear@10%.macro_f1", "knn@2,5%.accuracy")),
        ("segmentation", ("linear.dice", "linear@10%.iou")),
        ("finetune", ("accuracy", "quadratic_kappa")),
    ],
)
def test_scores_that_judging_gives_are_accepted(kind, metrics):
    refuse_bad_task(task(kind, metrics), (1.0, 0.1, 0.025))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (task(metrics=("linear.acuracy",)), r"tasks\.t\.metrics: got 'linear\.acuracy'; did you"),
        (task(metrics=("accuracy",)), r"tasks\.t\.metrics: got 'accuracy'"),
        (task(metrics=("linear@10%.accuracy",)), r"got 'linear@10%\.accuracy'"),  # no such share
        (task(metrics=()), r"tasks\.t\.metrics: got none; name one of linear\.accuracy"),
        (task("segmentation", ("knn.dice",)), r"got 'knn\.dice'; did you mean 'linear\.dice'"),
        (task("finetune", ("linear.accuracy",)), r"did you mean 'accuracy'"),
        (task(overrides=("batch_sise=3",)), r"tasks\.t\.batch_sise: no such field; did you mean"),
        (task(overrides=("batch_size=0",)), r"tasks\.t\.batch_size: got 0"),
    ],
)
def test_a_task_that_cannot_be_judged_is_refused_with_its_field(bad, says):
    with pytest.raises(InputError, match=says):
        refuse_bad_task(bad, (1.0,))


@pytest.mark.parametrize(
    ("kind", "override", "loader", "field", "value"),
    [
        ("segmentation", "stretch_masks=true", "load_masked_images", "stretch_masks", True),
        ("segmentation", "split_seed=3", "load_masked_images", "seed", 3),
        ("probe", "label_column=grade", "load_labelled_images", "label_column", "grade"),
        ("probe", "size_px=48", "load_labelled_images", "size_px", 48),
        ("finetune", "split_seed=5", "load_labelled_images", "seed", 5),
    ],
)
def test_overrides_of_a_task_decide_how_its_images_are_read(
    tmp_path, monkeypatch, kind, override, loader, field, value
):
    """Images are read once for all encoders, apart from the runs that the settings go to."""
    (cell,) = make_chain(tmp_path, "untrained", tasks=("t",), is_trained=False).judges
    object.__setattr__(cell, "task", task(kind, overrides=(override,)))
    object.__setattr__(cell, "data", tmp_path / override)  # another place in the cache

    def stop(_, **keywords):
        assert keywords[field] == value
        raise InputError("seen")

    monkeypatch.setattr(benchmark_work, loader, stop)
    with pytest.raises(InputError, match="seen"):
        run_cell(cell)
