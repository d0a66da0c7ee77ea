"""Files as a whole: written at once or not at all, their hash, and folders to write to."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from lvmmed.types import InputError

_REMEDY = "give another folder, in one that you may write to"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one move.

    Args:
        path: file to appear, or to be replaced; its folder exists.
        write: takes the temporary path and writes the whole content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_unwritable(folder: Path, argument: str) -> None:
    """Refuse a folder that cannot be made or written to, before work is done for it.

    Touches nothing. A file in the folder's place is left to the caller's own words.

    Args:
        folder: where something is to be written; it may be absent.
        argument: how the user named it, such as "--out".

    Raises:
        InputError: something on the way is no folder, or cannot be written to.
    """
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{argument}: cannot write to {folder} ({reason}); {_REMEDY}") from error
    whole = folder.absolute()
    nearest = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    if nearest == whole and not nearest.exists():
        raise InputError(
            f"{argument}: cannot write to {folder} (a link to what is absent); {_REMEDY}"
        )
    if nearest != whole and not nearest.is_dir():
        raise InputError(f"{argument}: got {folder}, but {nearest} is no folder; {_REMEDY}")
    if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"{argument}: cannot write to {folder} (no permission in {nearest}); {_REMEDY}"
        )
