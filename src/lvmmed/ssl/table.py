"""The table of self-supervised methods: one row a method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lvmmed.config import MethodConfig
from lvmmed.ssl.lvm_med import LvmMed, LvmMedConfig
from lvmmed.ssl.method import Method
from lvmmed.ssl.simclr import Simclr, SimclrConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """What is needed to run a method.

    Attributes:
        config: class of its configuration.
        build: (configuration, width of the backbone, generator) -> the method on the CPU; heads
            are initialised from the generator.
        summary: one line for lists and help texts.
    """

    config: type[MethodConfig]
    build: Callable[[Any, int, torch.Generator], Method]
    summary: str


METHODS: dict[str, MethodRow] = {
    "lvm-med": MethodRow(
        config=LvmMedConfig,
        build=lambda config, width, generator: LvmMed(config, width, generator=generator),
        summary="second-order graph matching between two views of a batch",
    ),
    "simclr": MethodRow(
        config=SimclrConfig,
        build=lambda config, width, generator: Simclr(config, width, generator=generator),
        summary="contrast each view with all other images of the batch",
    ),
}
"""Method name -> row; adding a method is one file and one row here."""
