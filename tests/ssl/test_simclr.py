import pytest
import torch
from reference.contrast import nt_xent_loop
from reference.ssl_batches import context_of_width

from lvmmed.config import validated
from lvmmed.models.backbones import Features
from lvmmed.ssl.simclr import Simclr, SimclrConfig
from lvmmed.types import InputError


def _features(generator, num=8, width=6):
    maps = torch.randn(num, width, 2, 2, generator=generator)
    return Features(map=maps, pooled=maps.mean((2, 3)))


def _run(config, generator):
    features = [_features(generator), _features(generator)]
    method = Simclr(config, context_of_width(6))
    output = method.training_loss([], features, step=0, generator=generator)
    return method, features, output


def test_the_loss_is_nt_xent_of_the_projections(generator):
    config = SimclrConfig(projector_hidden_width=16, projection_width=4)
    method, features, output = _run(config, generator)
    first, second = (method.projector(one.pooled).tolist() for one in features)
    loss, accuracy = nt_xent_loop(first, second, config.temperature)
    assert float(output.total.detach()) == pytest.approx(loss, rel=1e-4)
    assert float(output.metrics["contrast_accuracy"]) == pytest.approx(accuracy)
    figures = method.diagnostics([], features, step=0, generator=generator)
    assert figures == {"contrast_accuracy": pytest.approx(accuracy)}


def test_the_default_projector_is_a_two_layer_mlp():
    method = Simclr(SimclrConfig(), context_of_width(512))
    shapes = [tuple(p.shape) for p in method.parameters() if p.ndim == 2]
    assert shapes == [(2048, 512), (128, 2048)]


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.5},
        {"projection_width": 64},
        {"projector_hidden_layers": 2},
        {"projector_hidden_width": 32},
    ],
)
def test_every_field_changes_the_loss(changed):
    losses = [
        _run(SimclrConfig(**fields), torch.Generator().manual_seed(0))[2].total
        for fields in ({}, changed)
    ]
    assert not torch.equal(*losses)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0}, r"method\.temperature: got 0"),
        ({"projection_width": 0}, r"method\.projection_width: got 0"),
        ({"temprature": 1}, r"did you mean 'temperature'"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(SimclrConfig, fields, prefix="method.")
