"""Going on with a pre-training run: what may differ from its beginning, and what must not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvmmed import distributed
from lvmmed.config import RunConfig
from lvmmed.data.store import Store
from lvmmed.engine.run_folder import CONFIG, ENVIRONMENT, RunFolder
from lvmmed.files import file_sha256, locked
from lvmmed.models.weights import ENCODER
from lvmmed.types import InputError

MAY_DIFFER = ("data.store", "train.device", "log.samples", "log.probe_data")
"""Fields that may change when a run is resumed; the store is known by its content instead."""
WEIGHTS = "model.weights"
"""Field that may change as well where the content of the weights is known and the same."""
WEIGHTS_SHA256 = "weights_sha256"
"""Name in environment.json of the hash of the weights that a run began from."""


def weights_sha256(weights: str) -> str | None:
    """Hash the weights that training starts from, wherever they lie.

    Args:
        weights: "random", "timm:NAME", a weight file or a run folder.

    Returns:
        Hash of the file, or of the run folder's encoder; None where there is no such file.
    """
    if weights == "random" or weights.startswith("timm:"):
        return None
    path = Path(weights)
    path = path / ENCODER if path.is_dir() else path
    return file_sha256(path) if path.is_file() else None


def open_run(config: RunConfig, out: Path) -> RunFolder:
    """Open a run to go on with it.

    Args:
        config: configuration wanted.
        out: run folder.

    Returns:
        The open folder.

    Raises:
        InputError: there is no run, or it has other settings or began from other weights.
    """
    folder = RunFolder.open(out)
    known = folder.read_json(ENVIRONMENT).get(WEIGHTS_SHA256)
    found = weights_sha256(config.model.weights)
    is_known = None not in (known, found)
    if is_known and known != found:
        raise InputError(
            f"{out}: its run began from other weights than {config.model.weights} holds (contents "
            "differ); resume with the weights that it began from, wherever they lie now, or give "
            "another folder with --out"
        )
    ignored = (*MAY_DIFFER, WEIGHTS) if is_known else MAY_DIFFER
    folder.refuse_other_config(config.model_dump(mode="json"), ignored=ignored)
    return folder


def refuse_other_images(folder: RunFolder, store: Store) -> None:
    """Refuse to go on with a run on other images.

    Args:
        folder: of the run.
        store: images wanted.

    Raises:
        InputError: the fingerprints of the images differ.
    """
    known = folder.read_json(ENVIRONMENT).get("data_fingerprint")
    if known != store.fingerprint:
        raise InputError(
            f"{folder.path}: its run saw other images than {store.path} holds (fingerprints "
            "differ); resume with the same --data, or give another folder with --out"
        )


@contextmanager
def sole_writer(folder: RunFolder) -> Iterator[None]:
    """Keep a run for the process that writes it, so that nobody resumes what is still training.

    Processes of a killed torchrun may live on. Of several processes the first one holds the lock.

    Args:
        folder: of the run.

    Yields:
        Once, while the lock is held.

    Raises:
        InputError: another process is training this run.
    """
    if not distributed.is_main():
        yield
        return
    refusal = (
        f"{folder.path}: another process is training this run; wait for its end or stop it, or "
        "give another folder with --out"
    )
    with locked(folder.path / CONFIG, refusal):
        yield
