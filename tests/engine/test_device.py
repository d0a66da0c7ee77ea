"""Choice of device and arithmetic."""

import warnings

import pytest
import torch

from lvmmed.engine import device as device_module
from lvmmed.engine.device import choose_device, determinism, uses_bf16
from lvmmed.types import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_a_processor_runs_bf16_only_when_asked_and_able(monkeypatch, precision, has_bf16):
    monkeypatch.setattr(device_module, "processor_has_bf16", lambda: has_bf16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert uses_bf16(precision, CPU) == (precision == "bf16" and has_bf16)
    told = [str(warning.message) for warning in caught]
    assert told == (
        ["train.precision: got 'bf16', which this processor lacks; runs in fp32"]
        if precision == "bf16" and not has_bf16
        else []
    )


def test_a_gpu_without_bf16_refuses_it_and_auto_uses_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert [uses_bf16(word, GPU) for word in ("auto", "bf16", "fp32")] == [True, True, False]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))  # emulates bf16
    assert not uses_bf16("auto", GPU)
    with pytest.raises(InputError, match="use fp32"):
        uses_bf16("bf16", GPU)


def test_unknown_devices_are_refused():
    with pytest.raises(InputError, match="allowed are auto, cpu"):
        choose_device("tpu")


def test_an_operation_without_a_deterministic_algorithm_is_named():
    place, source = torch.tensor([0]), torch.ones(1)
    said = r"train\.deterministic: torch has no deterministic put_"
    with pytest.raises(InputError, match=said), determinism(True):
        torch.zeros(3).put_(place, source)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another"), determinism(True):
        raise RuntimeError("another")
