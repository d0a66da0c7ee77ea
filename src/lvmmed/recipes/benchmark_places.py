"""Where the paths of a suite are looked for, and what to say when nothing is there."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvmmed.recipes.benchmark_suite import Suite, SuiteInitialisation
from lvmmed.types import InputError


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders that the relative paths of a suite may lie in.

    A path that is whole (`/data/brain`) or of a home (`~/data/brain`) is taken as it is.

    Attributes:
        folders: the folder of data first, then that of the suite's file; the first match counts.
        suite: name of the suite, for messages.
        has_data: whether the user named a folder of data.
    """

    folders: tuple[Path, ...]
    suite: str
    has_data: bool

    def find(self, name: str, *, field: str) -> Path:
        """Find a file or folder.

        Args:
            name: as the suite has it.
            field: of the suite, for the message.

        Returns:
            The path.

        Raises:
            InputError: there is none; says where it was looked for.
        """
        found = next((path for path in self._candidates(name) if path.exists()), None)
        if found is None:
            raise InputError(self._refusal(name, field))
        return found

    def find_source(self, name: str, *, field: str) -> str:
        """Find a file, a folder or what a glob matches.

        Args:
            name: as the suite has it.
            field: of the suite, for the message.

        Returns:
            A path or glob that holds from the working folder.

        Raises:
            InputError: there is none; says where it was looked for.
        """
        found = next((str(path) for path in self._candidates(name) if matches(str(path))), None)
        if found is None:
            raise InputError(self._refusal(name, field))
        return found

    def find_weights(self, start: SuiteInitialisation) -> str:
        """Find the weights of an initialisation, in the working folder too.

        Args:
            start: initialisation.

        Returns:
            What `load_encoder` takes.

        Raises:
            InputError: there is no such file; says where it was looked for.
        """
        name = start.weights
        if name == "random" or name.startswith("timm:"):
            return name
        candidates = [*self._candidates(name), Path(name)]
        found = next((path for path in candidates if path.exists()), None)
        if found is None:
            where = " nor ".join(f"in {folder}" for folder in [*self.folders, "the working folder"])
            raise InputError(
                f"initialisations.{start.name}.weights: no {name} {where}; put the file there, "
                "write its whole path, or leave the initialisation out"
            )
        return str(found)

    def _candidates(self, name: str) -> list[Path]:
        path = Path(name).expanduser()
        return [path] if path.is_absolute() else [folder / path for folder in self.folders]

    def _refusal(self, name: str, field: str) -> str:
        path = Path(name).expanduser()
        if path.is_absolute():
            return f"{field}: no {path}; check the path"
        if not self.folders:
            return (
                f"--data: missing; suite {self.suite!r} reads {name} ({field}) below the folder of "
                "data"
            )
        where = " nor ".join(f"in {folder}" for folder in self.folders)
        hint = "" if self.has_data else ", name the folder of data with --data"
        return f"{field}: no {name} {where}; put it there{hint}, or write its whole path"


def matches(source: str) -> list[str]:
    """Paths behind a path or glob, sorted; none where nothing is there."""
    if Path(source).exists():
        return [source]
    return sorted(glob.glob(source, recursive=True)) if glob.has_magic(source) else []  # noqa: PTH207


def source_paths(suite: Suite, places: Places) -> list[str]:
    """Find what the image store is made of."""
    return [places.find_source(name, field="pretrain_on") for name in suite.pretrain_on]


def suite_folders(data: Path | None, file: Path | None) -> tuple[Path, ...]:
    """Folders to look in.

    Args:
        data: folder of data that the user named.
        file: file that the suite was read from.

    Returns:
        Without those that were not given.

    Raises:
        InputError: the folder of data is not there.
    """
    if data is not None and not data.expanduser().is_dir():
        raise InputError(f"--data: got {data}, which is no folder; check the path")
    given: Sequence[Path | None] = (data and data.expanduser(), file and file.expanduser().parent)
    return tuple(dict.fromkeys(path for path in given if path is not None))
