"""Going on with a run: the weights it began from are known by their content, not their place."""

import json
import shutil

import pytest
import torch
from reference.tiny_store import write_tiny_store
from safetensors.torch import load_file

from lvmmed.engine.run_folder import RunFolder
from lvmmed.models.backbones import build_backbone
from lvmmed.models.weights import card_for, save_encoder
from lvmmed.recipes.pretraining import pretrain, resolve_config
from lvmmed.recipes.resumption import weights_sha256
from lvmmed.types import InputError

FIELDS = [
    "model.backbone=test_efficientnet",
    "views.size=32",
    "train.batch_size=8",
    "train.steps=4",
    "train.checkpoint_every=1",
    "train.device=cpu",
    "method.projector_hidden_width=16",
    "log.samples=0",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumption") / "store"
    write_tiny_store(folder)
    return folder


def write_weights(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    encoder = build_backbone("test_efficientnet", size_px=32, generator=generator)
    save_encoder(encoder, folder, card_for(encoder))


def config_of(store, weights):
    return resolve_config("simclr", [*FIELDS, f"model.weights={weights}"], store=str(store))


def stop(done, *_):
    if done == 2:
        raise KeyboardInterrupt


def test_a_run_goes_on_when_its_weights_have_moved_and_the_path_is_spelt_otherwise(
    store, tmp_path, monkeypatch
):
    write_weights(tmp_path / "data", 0)
    pretrain(config_of(store, tmp_path / "data" / "encoder.safetensors"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(config_of(store, tmp_path / "data"), tmp_path / "run", progress=stop)
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    result = pretrain(config_of(store, "moved/encoder.safetensors"), tmp_path / "run", resume=True)
    assert result.values["num_steps"] == 4
    straight, resumed = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "run")
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_other_weights_are_refused_also_at_the_same_path(store, tmp_path):
    weights, out = tmp_path / "data", tmp_path / "run"
    write_weights(weights, 0)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config_of(store, weights), out, progress=stop)
    shutil.rmtree(weights)
    write_weights(weights, 1)
    with pytest.raises(InputError) as error:
        pretrain(config_of(store, weights), out, resume=True)
    assert str(error.value) == (
        f"{out}: its run began from other weights than {weights} holds (contents differ); resume "
        "with the weights that it began from, wherever they lie now, or give another folder with "
        "--out"
    )


def test_where_the_content_is_not_known_the_name_decides(store, tmp_path):
    weights, out = tmp_path / "data", tmp_path / "run"
    write_weights(weights, 0)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config_of(store, weights), out, progress=stop)
    with pytest.raises(InputError, match=r"its run has model\.weights = '.*data', not 'random'"):
        pretrain(config_of(store, "random"), out, resume=True)
    facts = json.loads((out / "environment.json").read_text())
    facts.pop("weights_sha256")  # a run of an earlier version
    (out / "environment.json").write_text(json.dumps(facts))
    weights.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"model\.weights = '.*data', not '.*moved'"):
        pretrain(config_of(store, tmp_path / "moved"), out, resume=True)
    (tmp_path / "moved").rename(weights)
    assert pretrain(config_of(store, weights), out, resume=True).values["num_steps"] == 4


def test_names_have_no_content(tmp_path):
    assert weights_sha256("random") is None
    assert weights_sha256("timm:resnet50") is None
    assert weights_sha256(str(tmp_path / "absent.pth")) is None


def test_a_run_that_is_being_trained_is_not_resumed_beside_it(store, tmp_path):
    config, tried = config_of(store, "random"), []

    def resume_too(done, *_):
        if done == 2:
            with pytest.raises(InputError, match=r"run: another process is training this run; "):
                pretrain(config, tmp_path / "run", resume=True)
            tried.append(done)

    pretrain(config, tmp_path / "run", progress=resume_too)
    assert tried == [2]
    pretrain(config, tmp_path / "alone")
    disturbed, alone = (RunFolder.open(tmp_path / name) for name in ("run", "alone"))
    assert [row["loss"] for row in disturbed.rows()] == [row["loss"] for row in alone.rows()]
    assert pretrain(config, tmp_path / "run", resume=True).was_finished
