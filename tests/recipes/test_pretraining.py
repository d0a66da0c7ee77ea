"""The recipe on tiny stores: resume bit for bit, what is written, what is refused."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from reference.pretraining_ranks import pretrain_tiny
from reference.ranks import run_ranks
from reference.tiny_store import write_tiny_store
from safetensors.torch import load_file

from lvmmed.models.weights import load_encoder
from lvmmed.recipes.pretraining import pretrain, resolve_config, tail_means
from lvmmed.ssl.lvm_med import LvmMed
from lvmmed.types import InputError

TINY = [
    "model.backbone=resnet10t",
    "views.size=32",
    "train.batch_size=16",
    "train.steps=10",
    "train.checkpoint_every=5",
    "log.every=3",
    "log.samples=4",
    "train.device=cpu",
    "method.name=lvm-med",
    "method.graph_size=8",
    "method.neighbors=3",
    "method.solver_restarts=1",
    "method.solver_iterations=4",
]
CLOCK = ("images_per_s", "data_wait_frac", "alarms", "warnings")
STATEFUL = {
    "moco": ["method.queue_length=16", "method.projector_hidden_width=32"],
    "byol": ["method.hidden_width=32", "method.projection_width=16"],
    "dino": ["method.num_prototypes=64", "method.hidden_width=32", "views.small_crops=1"],
}
"""Recipes with teachers, queues or memories -> settings that make them small."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining") / "store"
    write_tiny_store(folder)
    return folder


def tiny(store, *overrides, recipe="lvm-med"):
    words = [word for word in TINY if recipe == "lvm-med" or not word.startswith("method.")]
    return resolve_config(recipe, [*words, *overrides], store=str(store))


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A finished run of ten steps; tests leave it as it is."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return pretrain(tiny(store), out)


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def stop_after(num_steps, *, of=10):
    def progress(done, total, note):
        assert total == of
        assert "loss" in note
        if done == num_steps:
            raise KeyboardInterrupt

    return progress


def test_a_run_writes_everything_that_judges_and_cites_it(finished, store):
    folder = finished.folder
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "card.json",
        "checkpoints",
        "config.yaml",
        "encoder.safetensors",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "samples.npz",
    ]
    assert yaml.safe_load((folder / "config.yaml").read_text())["recipe"] == "lvm-med"
    result = json.loads((folder / "result.json").read_text())
    assert (result["task"], result["recipe"], result["seeds"]) == ("pretrain", "lvm-med", [0])
    assert result["num_cases"] == {"train": 24, "watched": 24}
    assert 1 <= result["metrics"]["watched"]["effective_rank"]["mean"] <= 24
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["data_fingerprint"] == result["data_fingerprint"]
    assert str(store.parent.name) not in json.dumps(environment["packages"])
    assert any("encoder of 10 steps" in line for line in finished.lines())


def test_rows_have_the_figures_of_the_contract(finished):
    rows = rows_of(finished.folder)
    assert [row["step"] for row in rows] == [0, 3, 6, 9]
    for name in (
        "loss",
        "learning_rate",
        "grad_norm",
        "feature_std",
        "effective_rank",
        "matching_accuracy",
        "matching_accuracy_first_order",
        "matching_accuracy_perturbed",
        "hamming",
        "noise_to_affinity",
        "second_solve_skipped",
        "solver_gap",
    ):
        assert all(math.isfinite(row[name]) for row in rows), name


def test_the_encoder_comes_back_with_its_card(finished):
    loaded = load_encoder(str(finished.folder))
    card = loaded.card
    assert (card.backbone, card.recipe, card.method, card.step) == (
        "resnet10t",
        "lvm-med",
        "lvm-med",
        10,
    )
    assert {name: seen["num_images"] for name, seen in card.datasets.items()} == {
        "even": 12,
        "odd": 12,
    }
    assert sum(card.intensity_policies.values()) == 24
    assert card.derived_from == "random"
    step, state = (
        10,
        torch.load(finished.folder / "checkpoints" / "step_0000010.pt", weights_only=True),
    )
    weights = {k.removeprefix("backbone."): v for k, v in state["model"].items()}
    own = loaded.backbone.state_dict()
    assert step == 10
    assert all(torch.equal(own[name], weights[name]) for name in own)


def test_training_goes_on_from_a_finished_run_and_says_so(finished, store, tmp_path):
    config = tiny(store, f"model.weights={finished.folder}", "train.steps=1")
    pretrain(config, tmp_path / "second")
    card = json.loads((tmp_path / "second" / "card.json").read_text())
    assert card["derived_from"].startswith("lvm-med at step 10")


@pytest.mark.parametrize("recipe", ["lvm-med", "byol"])
def test_frozen_batch_norm_keeps_its_statistics_and_nothing_else(finished, store, tmp_path, recipe):
    """Also the teacher's, which is a copy of the encoder."""
    words = [f"model.weights={finished.folder}", "train.steps=2", *STATEFUL.get(recipe, [])]
    config = tiny(store, *words, "model.frozen_batch_norm=true", recipe=recipe)
    pretrain(config, tmp_path / "second")
    before = load_file(finished.folder / "encoder.safetensors")
    after = load_file(tmp_path / "second" / "encoder.safetensors")
    statistics = [key for key in before if "running_" in key]
    assert len(statistics) > 4
    assert all(torch.equal(before[key], after[key]) for key in statistics)
    affine = [key.replace("running_mean", "weight") for key in statistics if "mean" in key]
    assert not all(torch.equal(before[key], after[key]) for key in affine)


def test_samples_are_as_the_report_reads_them(finished):
    with np.load(finished.folder / "samples.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    for name in ("originals", "view_s", "view_t"):
        assert found[name].shape == (4, 32, 32, 3)
        assert found[name].dtype == np.uint8
    for name in ("box_s", "box_t"):
        box = found[name]
        assert box.shape == (4, 4)
        assert box.dtype == np.float32
        assert (box >= 0).all()
        assert (box <= 1).all()
        assert (box[:, 2:] > box[:, :2]).all()
    assert found["flipped_s"].dtype == bool
    assert found["graph_view_s"].shape == found["graph_view_t"].shape == (8, 32, 32, 3)
    for name in ("permutation", "permutation_first_order"):
        assert sorted(found[name].tolist()) == list(range(8))
    assert found["neighbors_s"].shape == found["neighbors_t"].shape == (8, 3)


def test_the_view_shown_is_the_crop_of_its_original(store, tmp_path):
    """Without photometric changes, cutting the box from the source gives the view's mean."""
    plain = [f"views.{name}_probability=0" for name in ("jitter", "grey", "blur", "flip")]
    config = tiny(store, *plain, "train.steps=1", "views.scale=[1.0,1.0]")
    pretrain(config, tmp_path / "run")
    with np.load(tmp_path / "run" / "samples.npz") as arrays:
        originals, views, boxes = (arrays[n] for n in ("originals", "view_s", "box_s"))
    for original, view, box in zip(
        originals.astype(float), views.astype(float), boxes, strict=True
    ):
        x0, y0, x1, y1 = np.rint(box * 32).astype(int)
        expected = original[y0:y1, x0:x1].mean((0, 1))
        assert np.abs(view.mean((0, 1)) - expected).max() < 6


def test_ten_steps_are_five_a_stop_and_five_more(finished, store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(store), out, progress=stop_after(7))
    assert not (out / "result.json").exists()
    torch.rand(3)
    result = pretrain(tiny(store), out, resume=True)
    assert not result.was_finished
    straight = load_file(finished.folder / "encoder.safetensors")
    resumed = load_file(out / "encoder.safetensors")
    command = json.loads((out / "result.json").read_text())["command"]
    assert command == json.loads((out / "environment.json").read_text())["command"]
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert rows_of(out) == rows_of(finished.folder)
    with np.load(out / "samples.npz") as a, np.load(finished.folder / "samples.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in b.files)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", STATEFUL)
def test_what_methods_carry_from_step_to_step_is_resumed_bit_for_bit(store, tmp_path, recipe):
    words = ["train.steps=4", "train.checkpoint_every=2", "log.every=1", "log.samples=0"]
    config = tiny(store, *words, *STATEFUL[recipe], recipe=recipe)
    pretrain(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path / "stopped", progress=stop_after(3, of=4))
    pretrain(config, tmp_path / "stopped", resume=True)
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "straight")
    straight, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "step_0000004.pt", weights_only=True)["model"]
        for name in ("straight", "stopped")
    )
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_run_stopped_before_its_first_checkpoint_starts_over(finished, store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(store), out, progress=stop_after(2))
    pretrain(tiny(store), out, resume=True)
    assert rows_of(out) == rows_of(finished.folder)


def test_another_seed_is_another_run(finished, store, tmp_path):
    pretrain(tiny(store, "train.seed=1", "train.steps=1"), tmp_path / "run")
    first, second = rows_of(tmp_path / "run")[0], rows_of(finished.folder)[0]
    assert first["grad_norm"] != second["grad_norm"]


def test_how_often_rows_are_written_does_not_change_the_encoder(finished, store, tmp_path):
    pretrain(tiny(store, "log.every=10"), tmp_path / "run")
    straight = load_file(finished.folder / "encoder.safetensors")
    other = load_file(tmp_path / "run" / "encoder.safetensors")
    assert all(torch.equal(straight[name], other[name]) for name in straight)


def test_a_finished_run_is_left_alone_and_says_so(finished, store):
    before = {path.name: path.stat().st_mtime_ns for path in finished.folder.iterdir()}
    again = pretrain(tiny(store), finished.folder, resume=True)
    assert again.was_finished
    assert "was finished before" in again.lines()[0]
    with pytest.raises(InputError, match=r"holds a finished run; go on with --resume"):
        pretrain(tiny(store), finished.folder)
    with pytest.raises(InputError, match=r"recipe = 'lvm-med', not 'simclr'"):
        pretrain(tiny(store, recipe="simclr"), finished.folder, resume=True)
    with pytest.raises(InputError, match=r"train.seed = 0, not 3"):
        pretrain(tiny(store, "train.seed=3"), finished.folder, resume=True)
    after = {path.name: path.stat().st_mtime_ns for path in finished.folder.iterdir()}
    assert before == after


def test_resuming_on_other_images_is_refused(store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(store), out, progress=stop_after(1))
    write_tiny_store(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="saw other images"):
        pretrain(tiny(tmp_path / "other"), out, resume=True)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.batch_size=64"], r"train.batch_size: got 64, but .* 24 images"),
        (["model.backbone=resnet10"], "did you mean 'resnet"),
        (["model.weights=absent.pth"], "absent.pth"),
        (["model.frozen_batch_norm=true"], "model.frozen_batch_norm: got true, but random weights"),
        (["train.device=tpu"], "train.device: got 'tpu', allowed are"),
    ],
)
def test_what_is_refused_leaves_no_folder(store, tmp_path, overrides, says):
    with pytest.raises(InputError, match=says) as refused:
        pretrain(tiny(store, *overrides), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_store_that_is_missing_or_unnamed_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent.*lvmmed prepare"):
        pretrain(tiny(tmp_path / "absent"), tmp_path / "run")
    with pytest.raises(InputError, match=r"data.store: missing; .*--data"):
        pretrain(resolve_config("simclr"), tmp_path / "run")
    with pytest.raises(InputError, match="no run folder"):
        pretrain(tiny(tmp_path / "absent"), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(store, tmp_path, monkeypatch):
    original = LvmMed.training_loss

    def spoilt(self, views, features, *, step, generator):
        output = original(self, views, features, step=step, generator=generator)
        if step == 7:
            output.total.data.fill_(math.nan)
        return output

    monkeypatch.setattr(LvmMed, "training_loss", spoilt)
    with pytest.raises(InputError, match=r"step 7: the loss is nan .*train.learning_rate"):
        pretrain(tiny(store), tmp_path / "run")
    checkpoints = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert checkpoints == ["step_0000005.pt"]
    assert not (tmp_path / "run" / "result.json").exists()


def test_weights_that_the_last_step_broke_are_not_written(store, tmp_path, monkeypatch):
    step = torch.optim.AdamW.step

    def spoilt(self, *arguments, **more):
        result = step(self, *arguments, **more)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(math.nan)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spoilt)
    with pytest.raises(InputError, match=r"step 1: \d+ tensors of the encoder are not finite"):
        pretrain(tiny(store, "train.steps=1", "train.optimizer=adamw"), tmp_path / "run")
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper-literal", "simclr", "barlow-twins", "vicreg", "vicregl"])
def test_the_other_recipes_run_and_stay_finite(store, tmp_path, recipe):
    words = ["train.steps=2", "log.samples=2"]
    if recipe == "vicregl":
        words.append("views.size=48")  # two regions a side
    result = pretrain(tiny(store, *words, recipe=recipe), tmp_path / "run")
    assert result.values["recipe"] == recipe
    assert math.isfinite(result.figures["loss"])
    with np.load(tmp_path / "run" / "samples.npz") as arrays:
        assert ("permutation" in arrays.files) == (recipe == "paper-literal")


def test_a_collapse_is_said_in_words(store, tmp_path, monkeypatch):
    monkeypatch.setattr("lvmmed.recipes.monitoring.measure_feature_std", lambda features: 0.0)  # noqa: ARG005
    result = pretrain(tiny(store, "train.steps=4", "log.every=1"), tmp_path / "run")
    collapsed = [text for text in result.warnings if "images look alike" in text]
    assert len(collapsed) == 1  # said once, not at every row
    assert any(line.startswith("warning: step 0: collapse") for line in result.lines())


@pytest.mark.slow
def test_edges_that_spoil_late_in_the_run_are_told_once(store, tmp_path, monkeypatch):
    original = LvmMed.diagnostics

    def spoilt(self, views, features, *, step, generator):
        figures = original(self, views, features, step=step, generator=generator)
        return {**figures, "matching_accuracy": 0.3, "matching_accuracy_first_order": 0.5}

    monkeypatch.setattr(LvmMed, "diagnostics", spoilt)
    config = tiny(store, "train.steps=12", "log.every=1", "views.size=32", "log.samples=0")
    result = pretrain(config, tmp_path / "run")
    told = [text for text in result.warnings if "edges spoil" in text]
    assert [text.split(":")[0] for text in told] == ["step 10"]  # the fifth row from step 6 on


def test_final_figures_are_means_over_the_last_tenth():
    rows = [{"step": step, "loss": float(step), "hamming": 1.0} for step in range(100)]
    rows[95]["matching_accuracy"] = 0.5
    means = tail_means(rows, num_steps=100)
    assert means == {"loss": 94.5, "matching_accuracy": 0.5}


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_train_the_encoder_of_one(store, tmp_path):
    """Plain SGD, so that rounding stays rounding; the one process uses torch's batch norm."""
    words = [*TINY, "train.steps=3", "log.every=1", "train.optimizer=sgd"]
    words += ["train.learning_rate=0.002", "train.warmup_frac=0"]
    one = pretrain_tiny(str(store), str(tmp_path / "one"), words)
    two = run_ranks(pretrain_tiny, str(store), str(tmp_path / "two"), words)
    for answer in two:
        torch.testing.assert_close(answer["weights"], one["weights"], rtol=1e-3, atol=1e-4)
        for row, expected in zip(answer["rows"], one["rows"], strict=True):
            names = ("loss", "grad_norm", "matching_accuracy", "effective_rank", "hamming")
            for name in (*names, "batch_accuracy", "batch_accuracy_perturbed"):
                assert row[name] == pytest.approx(expected[name], rel=1e-2), name
