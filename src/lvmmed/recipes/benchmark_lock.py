"""One benchmark at a time in a folder, and nothing half-written left in it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvmmed.files import locked
from lvmmed.types import InputError

LOCK = ".lock"
HALF_WRITTEN = re.compile(r"\..+\.\d+\.tmp")
"""Names under which files and folders are written before they are put in place."""


@contextmanager
def sole_use(out: Path) -> Iterator[None]:
    """Keep a folder for one call, and sweep out what a killed one left half-written.

    Args:
        out: folder of a benchmark; made when absent.

    Yields:
        Once, while the lock is held.

    Raises:
        InputError: another call holds it, or the path is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: got {out}, which is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"--out: another benchmark is running in {out}; wait for its end, or give another --out"
    )
    with locked(out / LOCK, refusal):
        sweep(out)
        yield


def sweep(out: Path) -> None:
    """Remove what was being written when a call was killed.

    Args:
        out: folder that nobody writes to now.
    """
    for path in [*out.glob(".*.tmp"), *(out / "cells").rglob(".*.tmp")]:
        if HALF_WRITTEN.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
