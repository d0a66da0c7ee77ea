"""What a run was made with: versions, commit and device; nothing that names a person or a host."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import lvmmed
from lvmmed import distributed
from lvmmed.types import FORMAT_VERSION

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "scipy", "pyarrow")
"""Packages whose versions decide figures."""


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Describe software and hardware of this process, for environment.json.

    Args:
        device: where the run computes; the processor when None.

    Returns:
        Plain values. No host or user name, no path.
    """
    return {
        "format_version": FORMAT_VERSION,
        "lvmmed": lvmmed.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "cuda": torch.version.cuda if device is not None and device.type == "cuda" else None,
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "num_ranks": distributed.world_size(),
    }


def code_version() -> str:
    """Version of this package, with the commit where it is known."""
    found = commit()
    return lvmmed.__version__ if found is None else f"{lvmmed.__version__}+{found}"


def device_name(device: torch.device | None) -> str:
    """Name of the accelerator, or "cpu"."""
    if device is None or device.type != "cuda":
        return "cpu"
    return str(torch.cuda.get_device_name(device))


def commit() -> str | None:
    """Commit of the package's own checkout, with "-dirty" after it when files were changed.

    Returns:
        None when the package is not run from a git checkout or git is not there.
    """
    root = Path(lvmmed.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def typed_command(verb: str, otherwise: Sequence[str]) -> str:
    """What the user typed, as a shell reads it, or what does the same.

    Args:
        verb: the command of `lvmmed` that does what is being done, such as "pretrain".
        otherwise: words of a command that does the same, for where this one was not typed: a
            Python program, or another command that this one is a part of.

    Returns:
        A command line.
    """
    program, words = Path(sys.argv[0]), sys.argv[1:]
    is_module = (program.parent.name, program.name) == ("lvmmed", "__main__.py")
    is_ours = is_module or program.stem == "lvmmed"
    first = next((word for word in words if not word.startswith("-")), None)
    return shlex.join(["lvmmed", *words] if is_ours and first == verb else otherwise)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
