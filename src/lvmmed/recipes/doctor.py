"""What this machine can do, what is missing, and what to do about it."""

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from lvmmed.engine.device import gpu_has_bf16, processor_has_bf16

CORE_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pydicom", "nibabel", "pyarrow")
DECODERS = {"openjpeg": "JPEG 2000", "rle": "RLE", "libjpeg": "JPEG lossless and JPEG-LS"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        subject: what was looked at.
        is_good: False when something is missing.
        found: what there is.
        advice: what to do about it; empty when nothing is missing.
    """

    subject: str
    is_good: bool
    found: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Look at interpreter, packages, processor, accelerator and decoders; changes nothing."""
    findings = [
        Finding(subject="python", is_good=True, found=platform.python_version()),
        *(_package(name) for name in CORE_PACKAGES),
        _accelerator(),
        Finding(subject="processor", is_good=True, found=f"{os.cpu_count()} cores"),
        *(_decoder(plugin, what) for plugin, what in DECODERS.items()),
        _salt(),
    ]
    return findings


def _package(name: str) -> Finding:
    try:
        return Finding(subject=name, is_good=True, found=version(name))
    except PackageNotFoundError:
        return Finding(subject=name, is_good=False, found="missing", advice=f"pip install {name}")


def _accelerator() -> Finding:
    if not torch.cuda.is_available():
        return Finding(
            subject="accelerator",
            is_good=True,
            found=f"none; runs on the processor, {_bf16(has_it=processor_has_bf16())}",
            advice="small encoders and views (resnet18 at 64 px) train on a processor; "
            "ResNet-50 at 224 px wants a GPU",
        )
    properties = torch.cuda.get_device_properties(0)
    arithmetic = _bf16(has_it=gpu_has_bf16(torch.device("cuda", 0)))
    found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {arithmetic}"
    return Finding(subject="accelerator", is_good=True, found=found)


def _bf16(*, has_it: bool) -> str:
    return "bf16" if has_it else "no bf16: runs in fp32"


def _decoder(plugin: str, what: str) -> Finding:
    is_good = importlib.util.find_spec(plugin) is not None
    return Finding(
        subject=f"DICOM {what}",
        is_good=is_good,
        found="decodes" if is_good else "no decoder",
        advice="" if is_good else f"pip install pylibjpeg-{plugin} (check its licence)",
    )


def _salt() -> Finding:
    is_set = bool(os.environ.get("LVMMED_SALT"))
    return Finding(
        subject="patient keys",
        is_good=True,
        found="salted from LVMMED_SALT" if is_set else "salted from a private file of this user",
        advice="" if is_set else "set LVMMED_SALT to compare patients across machines",
    )
