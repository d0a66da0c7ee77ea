"""Whole runs of the methods that keep clusters or masks: what a stopped run must bring back."""

import json
import math

import numpy as np
import pytest
import torch
from reference.tiny_store import write_tiny_store
from safetensors.torch import load_file

from lvmmed.data.store import Store, StoreWriter
from lvmmed.recipes.pretraining import pretrain, resolve_config
from lvmmed.recipes.run_facts import plan_run
from lvmmed.types import ImageRecord, InputError

TINY = [
    "model.backbone=resnet10t",
    "views.size=32",
    "views.small_size=32",
    "train.batch_size=16",
    "train.steps=8",
    "train.checkpoint_every=3",
    "log.every=1",
    "log.samples=4",
    "train.device=cpu",
]
RUNS = {
    "swav": ["views.small_crops=1", "method.num_prototypes=16", "method.queue_length=20"],
    "deepcluster": ["views.small_crops=1", "method.num_prototypes=[5,6]"],
    "mae": ["model.backbone=test_vit", "method.decoder_width=16"],
}
"""An epoch of the store has two steps of 16 images; the queue of swav starts at once."""
CLOCK = ("images_per_s", "data_wait_frac", "alarms", "warnings")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "store"
    write_tiny_store(folder)
    return folder


def _config(store, recipe, *overrides):
    return resolve_config(recipe, [*TINY, *RUNS[recipe], *overrides], store=str(store))


def _rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def _stop_after_five(done, total, note):  # noqa: ARG001
    if done == 5:
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_a_stopped_run_goes_on_bit_for_bit_from_the_middle_of_an_epoch(store, tmp_path, recipe):
    straight = pretrain(_config(store, recipe), tmp_path / "straight").folder
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        pretrain(_config(store, recipe), stopped, progress=_stop_after_five)
    torch.rand(3)
    pretrain(_config(store, recipe), stopped, resume=True)
    expected, got = (load_file(one / "encoder.safetensors") for one in (straight, stopped))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert _rows(straight) == _rows(stopped)
    states = [
        torch.load(one / "checkpoints" / "step_0000008.pt", weights_only=True)["model"]
        for one in (straight, stopped)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("recipe", RUNS)
def test_a_run_has_finite_figures_pictures_and_a_watched_encoder(store, tmp_path, recipe):
    result = pretrain(_config(store, recipe, "train.steps=3"), tmp_path / "run")
    rows = _rows(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all("partner_accuracy" in row for row in rows)
    assert result.figures["effective_rank"] > 1
    with np.load(tmp_path / "run" / "samples.npz") as arrays:
        assert arrays["view_s"].shape == (4, 32, 32, 3)


def test_every_image_is_remembered_before_the_first_step(store, tmp_path):
    pretrain(_config(store, "deepcluster", "train.steps=1"), tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step_0000001.pt"
    state = torch.load(checkpoint, weights_only=True)["model"]
    assert state["method.is_remembered"].all()
    torch.testing.assert_close(state["method.memory"].norm(dim=2), torch.ones(2, 24))
    assert state["method.assignments"].max() > 0


def _store_of_two_data_sets(folder, num_each):
    """Dark images of one data set, then bright ones of another, as `prepare` lays them."""
    rng = np.random.default_rng(0)
    writer = StoreWriter(folder, size=36)
    for index in range(2 * num_each):
        low = 20 if index < num_each else 180
        coarse = rng.integers(low, low + 40, (6, 6), dtype=np.uint8)
        record = ImageRecord(
            pixels=coarse.repeat(6, axis=0).repeat(6, axis=1), source=f"{index}.png", modality="CT"
        )
        name = "dark" if index < num_each else "bright"
        writer.add(record, dataset=name, sha256=f"{index:064d}")
    return writer.finish()


def test_the_first_clusters_are_of_one_data_set_each_where_data_sets_look_different(tmp_path):
    """In the order of the store each would be standardised by itself, and look like the other."""
    store: Store = _store_of_two_data_sets(tmp_path / "store", 40)
    plain = [f"views.{name}_probability=0" for name in ("jitter", "grey", "blur")]
    words = ["train.steps=1", "method.num_prototypes=[2]", *plain]
    config = _config(store.path, "deepcluster", *words)
    pretrain(config, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step_0000001.pt"
    clusters = torch.load(checkpoint, weights_only=True)["model"]["method.assignments"][0]
    rows = plan_run(config, store).held_out.train
    is_dark = torch.tensor([store.column("dataset")[row] == "dark" for row in rows])
    num_right = int((clusters == is_dark).sum())
    purity = max(num_right, len(rows) - num_right) / len(rows)
    assert purity == 1.0


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("swav", ["method.num_prototypes=50"], "num_prototypes: got 50, need at most the 36"),
        ("swav", ["train.steps=2"], "queue_length: got 20, need at most the 16 images"),
        ("deepcluster", ["method.num_prototypes=[25]"], "num_prototypes: got 25, .* 24 images"),
        ("mae", ["model.backbone=resnet18"], "model.backbone: got 'resnet18', but mae"),
        ("mae", ["views.size=40"], "does not take 40-px images .*multiple of its patch"),
        ("mae", ["views.size=16"], "views.size: got 16, which is a single patch"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(
    store, tmp_path, recipe, overrides, says
):
    with pytest.raises(InputError, match=says) as refused:
        pretrain(_config(store, recipe, *overrides), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
