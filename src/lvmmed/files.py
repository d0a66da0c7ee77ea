"""Files as a whole: written at once or not at all, their hash, and where they may be written."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lvmmed.types import InputError

UNFINISHED = ".tmp"
"""End of the name of a file that is being written, or was when its process was killed."""
_REMEDY = "give another folder, in one that you may write to"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one move.

    The file is on the disk before it is moved, so that not even a power cut leaves half of it.

    Args:
        path: file to appear, or to be replaced; its folder exists.
        write: takes the temporary path and writes the whole content.

    Raises:
        InputError: the disk is full, or the folder cannot be written to; what was there is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with told_if_unwritable(path):
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def told_if_unwritable(path: Path) -> Iterator[None]:
    """Put the errors of writing a file, such as that of a full disk, into the user's words.

    Args:
        path: file that is written inside.

    Raises:
        InputError: it cannot be written.
    """
    try:
        yield
    except Exception as error:
        reason = _system_error(error)
        if reason is None:
            raise
        raise InputError(
            f"{path}: cannot be written ({reason}); make room there, or write elsewhere"
        ) from error


def _system_error(error: Exception) -> str | None:
    """What the system said, through the errors that torch and safetensors make of it."""
    for one in (error, error.__context__):
        if isinstance(one, OSError):
            return one.strerror or type(one).__name__
    found = re.search(r"I/O error: (.+) \(os error", str(error))
    return None if found is None else found[1]


def is_there(path: Path) -> bool:
    """Whether a file or folder is there; an InputError where the system cannot tell."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a null character
        return False
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return True


def file_sha256(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Hold a file's lock, which the system frees when the process ends, however it ends.

    Where there are no locks (some file systems, Windows), nothing is held.

    Args:
        file: made when absent; its content stays as it is.
        refusal: what the user is told when another process holds it.

    Yields:
        Once, while the lock is held.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with file.open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(refusal) from error
        except OSError:
            pass  # no locks here
        yield


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


def refuse_other_than_png(file: Path, argument: str) -> None:
    """Refuse a picture that is not to be a PNG, before it is drawn.

    Args:
        file: picture to write.
        argument: how the user named it, such as "--sheet".

    Raises:
        InputError: another suffix than .png.
    """
    if file.suffix.lower() != ".png":
        raise InputError(f"{argument}: got {file}; only PNG is written, name a .png file")


@contextmanager
def picture_folder(file: Path, argument: str) -> Iterator[None]:
    """Make the folder of a picture that is written inside, and put its errors in the user's words.

    Args:
        file: picture to write.
        argument: how the user named it, such as "--sheet".

    Raises:
        InputError: the folder cannot be made, or the file not be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"{argument}: cannot write {file} ({reason}); name another .png file"
        ) from error
