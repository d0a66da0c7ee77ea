"""Which runs belong together, and what tells the others apart."""

from pathlib import Path

from reference.run_folders import write_judging, write_pretrain

from lvmmed.report.groups import (
    RANDOM_LABEL,
    as_text,
    compare,
    judging_groups,
    pretrain_groups,
    styles,
)
from lvmmed.report.run import read_runs


def test_runs_that_differ_by_seed_only_are_one_group(tmp_path):
    folders = [write_pretrain(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1, 2)]
    (group,) = pretrain_groups(read_runs(folders))
    assert (group.label, group.seeds, len(group.runs)) == ("lvm-med", (0, 1, 2), 3)


def test_runs_of_one_recipe_with_other_settings_are_told_apart_by_them(tmp_path):
    first = write_pretrain(tmp_path / "a")
    second = write_pretrain(tmp_path / "b", method={"margin": 0.5})
    labels = [group.label for group in pretrain_groups(read_runs([first, second]))]
    assert labels == ["lvm-med (margin 1)", "lvm-med (margin 0.5)"]


def test_the_main_recipe_comes_first_and_simclr_after_others(tmp_path):
    names = ("simclr", "paper-literal", "lvm-med")
    folders = [write_pretrain(tmp_path / name, recipe=name) for name in names]
    labels = [group.label for group in pretrain_groups(read_runs(folders))]
    assert labels == ["lvm-med", "paper-literal", "simclr"]


def _judged_labels(folders: list[Path]) -> list[str]:
    runs = read_runs(folders)
    judging = [run for run in runs if run.task == "probe"]
    return [group.label for group in judging_groups(judging, pretrain_groups(runs))]


def test_a_probe_is_labelled_by_the_pretraining_its_weights_come_from(tmp_path):
    trained = write_pretrain(tmp_path / "t", recipe="simclr")
    by_folder = write_judging(tmp_path / "a", weights=str(trained), metrics={})
    by_file = write_judging(
        tmp_path / "b", weights=str(trained / "encoder.safetensors"), metrics={}
    )
    both = write_judging(tmp_path / "c", metrics={}, result={"weights": [str(trained), "other"]})
    random = write_judging(tmp_path / "d", metrics={})
    assert _judged_labels([trained, random, by_folder, by_file, both]) == ["simclr", RANDOM_LABEL]


def test_a_probe_of_weights_outside_the_report_is_labelled_by_recipe_or_name(tmp_path):
    recipe = write_judging(
        tmp_path / "a", weights="gone/run", metrics={}, result={"recipe": "lvm-med"}
    )
    timm = write_judging(tmp_path / "b", weights="timm:resnet18", metrics={})
    file = write_judging(tmp_path / "c", weights="folder/lvmmed_resnet.torch", metrics={})
    labels = _judged_labels([recipe, timm, file])
    assert labels == ["lvm-med", "timm:resnet18", "lvmmed_resnet.torch"]


def _of_training(folder: Path, *, steps: int = 100, seed: int = 0) -> Path:
    """Weights whose run is not in the report, with the settings of their training beside them."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"{{method: {{name: x}}, views: {{size: 32}}, train: {{steps: {steps}, seed: {seed}}}}}"
    )
    return folder


def _groups(tmp_path: Path, weights: list[tuple[str, str]]) -> list[tuple[str, int]]:
    """Label and number of runs of the groups of probes of (weights, backbone)."""
    folders = [
        write_judging(
            tmp_path / f"probe{number}",
            weights=name,
            metrics={},
            result={"recipe": None if name == "random" else "lvm-med", "backbone": backbone},
        )
        for number, (name, backbone) in enumerate(weights)
    ]
    return [(group.label, len(group.runs)) for group in judging_groups(read_runs(folders), ())]


def test_weights_with_equal_settings_beside_them_are_seeds_of_one_row(tmp_path):
    trained = [_of_training(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    weights = [(str(trained[0]), "resnet18"), (str(trained[1] / "encoder.safetensors"), "resnet18")]
    assert _groups(tmp_path, weights) == [("lvm-med", 2)]


def test_weights_of_other_training_settings_are_rows_of_their_own(tmp_path):
    trained = [_of_training(tmp_path / str(steps), steps=steps) for steps in (100, 9000)]
    weights = [(str(folder), "resnet18") for folder in trained]
    assert _groups(tmp_path, weights) == [("lvm-med (steps 100)", 1), ("lvm-med (steps 9000)", 1)]


def test_weights_of_unknown_settings_are_joined_with_themselves_alone(tmp_path):
    weights = [("/a/w.pt", "resnet18"), ("/b/w.pt", "resnet18"), ("/a/w.pt", "resnet18")]
    assert _groups(tmp_path, weights) == [
        ("lvm-med (encoder /a/w.pt)", 2),
        ("lvm-med (encoder /b/w.pt)", 1),
    ]


def test_settings_of_something_else_beside_weights_tell_nothing(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("architecture: resnet18")
        (tmp_path / name / "w.pt").touch()
    weights = [(str(tmp_path / name / "w.pt"), "resnet18") for name in "ab"]
    assert [num for _, num in _groups(tmp_path, weights)] == [1, 1]


def test_other_backbones_are_rows_of_their_own(tmp_path):
    assert _groups(tmp_path, [("random", "resnet18"), ("random", "resnet50")]) == [
        ("random weights (backbone resnet18)", 1),
        ("random weights (backbone resnet50)", 1),
    ]


def test_settings_side_by_side_split_into_common_and_differing():
    left = {"train": {"steps": 10, "clip_norm": None}, "model": {"name": "a"}}
    right = {"train": {"steps": 20, "clip_norm": None}, "method": {"margin": 1e-3}}
    found = compare({"L": left, "R": right})
    dash = "\N{EN DASH}"
    assert found.columns == ("L", "R")
    assert dict(found.differing) == {
        "train.steps": ("10", "20"),
        "model.name": ("a", dash),
        "method.margin": (dash, "0.001"),
    }
    assert found.common == (("train.clip_norm", "none"),)


def test_settings_are_written_for_people():
    assert as_text([0.2, True, None]) == "0.2, yes, none"
    assert as_text(1 / 3) == "0.333333"
    assert as_text([]) == "none"


def test_no_two_of_eight_labels_share_a_style():
    labels = ["lvm-med", "simclr", "paper-literal", RANDOM_LABEL, "a", "b", "c", "d"]
    chosen = styles(labels)
    assert (chosen["lvm-med"], chosen["simclr"], chosen[RANDOM_LABEL]) == (0, 1, 7)
    assert sorted(chosen.values()) == list(range(8))


def test_the_first_variant_of_a_recipe_keeps_its_colour():
    chosen = styles(["lvm-med (margin 1)", "lvm-med (margin 0.5)", "simclr"])
    assert chosen["lvm-med (margin 1)"] == 0
    assert chosen["lvm-med (margin 0.5)"] not in (0, 1, 7)
