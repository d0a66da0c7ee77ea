"""Runs on a GPU that is the processor: the same numbers, so every tensor is in its place."""

import json

import pytest
from reference.masked_images import write_masked_images
from reference.shadow_gpu import shadow_gpu
from reference.ssl_batches import BACKBONE, FIELDS
from reference.striped_images import write_striped_images
from reference.tiny_store import write_tiny_store
from safetensors.torch import load_file

from lvmmed.engine.run_folder import RunFolder
from lvmmed.recipes.finetuning import FinetuneSettings, finetune_classification
from lvmmed.recipes.pretraining import RECIPES, pretrain, resolve_config
from lvmmed.recipes.probing import ProbeSettings, probe
from lvmmed.recipes.segmentation_probing import SegmentationProbeSettings, probe_segmentation

WORDS = [
    "views.size=32",
    "train.batch_size=16",
    "train.steps=3",
    "train.checkpoint_every=2",
    "log.every=1",
    "log.samples=4",
]
OTHER_WORDS = {
    "lvm-med-regions": ["views.size=64"],
    "moco": ["method.queue_length=16"],
    "vicregl": ["views.size=64"],
}
"""Settings of single recipes, for 24 images and for maps of more than one region."""
CLOCK = ("images_per_s", "data_wait_frac")
ENCODER = {"backbone": "test_resnet", "size_px": 32, "seeds": (0, 1)}
TASKS = {
    "probe": (write_striped_images, probe, ProbeSettings(**ENCODER)),
    "segmentation": (
        write_masked_images,
        probe_segmentation,
        SegmentationProbeSettings(**{**ENCODER, "size_px": 64}),
    ),
    "finetune": (
        write_striped_images,
        lambda weights, data, out, settings: finetune_classification(
            data, weights, out, settings=settings
        ),
        FinetuneSettings(**ENCODER, epochs=2, batch_size=12),
    ),
}
"""Task -> what writes its images, what judges an encoder on them, its settings."""


def config_of(recipe, store, device):
    name = RECIPES[recipe].values["method"]["name"]
    fields = [f"method.{field}={json.dumps(value)}" for field, value in FIELDS[name].items()]
    backbone = BACKBONE.get(name, "test_efficientnet")
    words = [*WORDS, *fields, f"model.backbone={backbone}", *OTHER_WORDS.get(recipe, ())]
    return resolve_config(recipe, [*words, f"train.device={device}"], store=str(store))


def rows_of(folder):
    rows = RunFolder.open(folder).rows()
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


@pytest.mark.parametrize(
    "recipe",
    [one if one == "lvm-med" else pytest.param(one, marks=pytest.mark.slow) for one in RECIPES],
)
def test_pretraining_on_a_gpu_is_that_on_the_processor(recipe, tmp_path, monkeypatch):
    write_tiny_store(tmp_path / "store")
    pretrain(config_of(recipe, tmp_path / "store", "cpu"), tmp_path / "processor")
    with shadow_gpu(monkeypatch):
        config = config_of(recipe, tmp_path / "store", "cuda")
        result = pretrain(config, tmp_path / "gpu")
        assert result.values["device"] == "shadow of the processor"
        assert pretrain(config, tmp_path / "gpu", resume=True).was_finished
    assert rows_of(tmp_path / "gpu") == rows_of(tmp_path / "processor")
    found, expected = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("gpu", "processor")
    )
    assert all((found[name] == value).all() for name, value in expected.items())


@pytest.mark.parametrize(
    "task", [one if one == "probe" else pytest.param(one, marks=pytest.mark.slow) for one in TASKS]
)
def test_judging_on_a_gpu_is_that_on_the_processor(task, tmp_path, monkeypatch):
    write, judge, settings = TASKS[task]
    data = write(tmp_path / "set")
    on_processor, on_gpu = (
        settings.model_copy(update={"device": device}) for device in ("cpu", "cuda")
    )
    judge("random", data, tmp_path / "processor", settings=on_processor)
    with shadow_gpu(monkeypatch):
        judge("random", data, tmp_path / "gpu", settings=on_gpu)
    found, expected = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("gpu", "processor")
    )
    assert found["metrics"] == expected["metrics"]
