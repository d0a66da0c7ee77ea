"""Which images a step sees, and having them in memory before they are needed."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lvmmed import distributed
from lvmmed.augment.rows import map_tensors
from lvmmed.augment.views import ImageBatch, pad_images
from lvmmed.config import DataConfig
from lvmmed.data.sampling import BatchSampler
from lvmmed.data.store import Store
from lvmmed.types import InputError

COMPOSITION_COLUMNS = {"dataset": "dataset", "volume": "volume_key"}
"""data.composition -> column of the store that the images of a graph share."""
NUM_AHEAD = 2
"""Steps whose images are loaded ahead."""
NUM_READERS = 8
"""Threads that read the images of a step: a slow disk answers several at once."""


def owners(store: Store) -> list[str]:
    """Name who each image belongs to: its patient, else its volume, else its very pixels.

    The names are the same whatever the salt of the store's keys, as what is trained on hangs on
    them.
    """
    columns = [unsalted(store, name) for name in ("patient_key", "volume_key")]
    columns.append(store.column("pixel_hash"))
    names = ("patient", "volume", "pixels")
    result: list[str] = []
    for keys in zip(*columns, strict=True):
        known = [f"{name} {key}" for name, key in zip(names, keys, strict=True) if key]
        result.append(known[0] if known else f"image {len(result)}")
    return result


def unsalted(store: Store, name: str) -> list[str | None]:
    """Column of salted keys under names that no salt decides: pixels of the first image of each.

    Args:
        store: where the column is.
        name: of the column.

    Returns:
        One name for each key; None stays None.
    """
    named: dict[str, str] = {}
    taken: Counter[str] = Counter()
    keys = store.column(name)
    for key, pixels in zip(keys, store.column("pixel_hash"), strict=True):
        if key is not None and key not in named:
            taken[pixels] += 1
            named[key] = f"{pixels}/{taken[pixels]}"
    return [None if key is None else named[key] for key in keys]


def load_images(store: Store, indices: Sequence[int]) -> ImageBatch:
    """Read some images of a store into one padded batch on the processor."""
    return pad_images([store.image(int(index)) for index in indices])


def make_sampler(
    store: Store,
    rows: Int64[np.ndarray, " train"],
    *,
    data: DataConfig,
    batch_size: int,
    graph_size: int,
    seed: int,
) -> BatchSampler:
    """Build the sampler over the training images.

    Args:
        store: where the images are.
        rows: indices of the training images.
        data: balance and composition.
        batch_size: images a step over all ranks.
        graph_size: images of a graph, 1 for methods without graphs.
        seed: of the run.

    Returns:
        A sampler whose indices count within `rows`.

    Raises:
        InputError: fewer images than a batch, a batch that ranks or graphs do not divide, or a
            composition asked of a method without graphs.
    """
    num_ranks = distributed.world_size()
    if len(rows) < batch_size:
        raise InputError(
            f"train.batch_size: got {batch_size}, but the store has {len(rows)} images to "
            "train on; lower it with --set train.batch_size=..., or prepare more images"
        )
    if num_ranks > 1 and batch_size % (num_ranks * graph_size):
        raise InputError(
            f"train.batch_size: got {batch_size}, need a multiple of {num_ranks * graph_size} "
            f"({num_ranks} processes x graphs of {graph_size})"
        )
    if data.composition != "mixed" and graph_size == 1:
        raise InputError(
            f"data.composition: got {data.composition!r}, but the method has no graphs; "
            "leave it at 'mixed'"
        )
    is_mixed = data.composition == "mixed"
    groups = None if data.balance == "none" else _column(store, data.balance, rows)
    blocks = None if is_mixed else _column(store, COMPOSITION_COLUMNS[data.composition], rows)
    return BatchSampler(
        len(rows),
        batch_size=batch_size,
        seed=seed,
        groups=groups,
        blocks=blocks,
        block_size=0 if is_mixed else graph_size,
    )


def _column(store: Store, name: str, rows: Int64[np.ndarray, " train"]) -> list[str | None]:
    values = unsalted(store, name) if name.endswith("_key") else store.column(name)
    return [None if values[row] is None else str(values[row]) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The images of one step.

    Attributes:
        sizes: (height, width) in pixels of all images of the step, over all ranks.
        own: rows of `sizes` that are this rank's images.
        batch: this rank's images, on the processor.
        image_index: their numbers among the images that are trained on.
        wait_s: seconds until they were there.
    """

    sizes: Int64[Tensor, "G 2"]
    own: slice
    batch: ImageBatch
    image_index: Int64[Tensor, " B"]
    wait_s: float = 0.0


def draw_of(batch: ImageBatch) -> Draw:
    """Take a batch for the whole step of a run without other ranks, numbered as it stands."""
    return Draw(
        sizes=batch.sizes,
        own=slice(0, len(batch)),
        batch=batch,
        image_index=torch.arange(len(batch)),
    )


class ImageFeed:
    """Loads this rank's images of coming steps in a thread; use it in a `with` block.

    What a step sees depends on its number only, never on the timing of the thread.

    Args:
        store: where the images are.
        rows: indices of the training images.
        sampler: of indices within `rows`.
        is_pinned: lay images where a GPU can fetch them while the host works.
    """

    def __init__(
        self,
        store: Store,
        rows: Int64[np.ndarray, " train"],
        sampler: BatchSampler,
        *,
        is_pinned: bool = False,
    ) -> None:
        self._is_pinned = is_pinned
        self._store = store
        self._rows = rows
        self._sampler = sampler
        sides = [store.column(name) for name in ("height_px", "width_px")]
        self._sizes = torch.tensor(np.array(sides, dtype=np.int64).T)
        self._coming: dict[int, Future[Draw]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="readers")

    def __enter__(self) -> "ImageFeed":
        """Start; nothing is loaded until the first `get`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop what was loaded ahead and end the threads."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)

    def get(self, step: int, *, num_steps: int) -> Draw:
        """Hand out the images of a step and start on those that follow.

        Args:
            step: number of the step.
            num_steps: length of the run; nothing is loaded beyond it.

        Returns:
            The images; an error of the loading thread is raised here.
        """
        started = time.perf_counter()
        for coming in range(step, min(step + 1 + NUM_AHEAD, max(num_steps, step + 1))):
            if coming not in self._coming:
                self._coming[coming] = self._thread.submit(self._step, coming)
        draw = self._coming.pop(step).result()
        return replace(draw, wait_s=time.perf_counter() - started)

    def all_images(self, batch_size: int, *, generator: torch.Generator) -> Iterator[Draw]:
        """Go once over all images that are trained on, in a random order.

        A store holds one data set after the other; in its order a batch would be of one data set,
        and batch normalisation would take away what sets that apart from the others.

        Args:
            batch_size: images at once over all ranks; the last batch is filled up from the start
                of the order.
            generator: of the order; in the same state on all ranks.

        Yields:
            Draw: the images of one batch.
        """
        num = len(self._rows)
        order = torch.randperm(num, generator=generator).numpy()
        for start in range(0, num, batch_size):
            yield self._load(order[np.arange(start, start + batch_size) % num])

    def _step(self, step: int) -> Draw:
        return self._load(self._sampler.batch(step))

    def _load(self, chosen: Int64[np.ndarray, " G"]) -> Draw:
        """Load this rank's share of some of the images that are trained on."""
        own = distributed.local_slice(len(chosen))
        rows = self._rows[chosen]
        batch = pad_images(self._read(rows[own]))
        return Draw(
            sizes=self._sizes[torch.from_numpy(rows)],
            own=own,
            batch=map_tensors(batch, Tensor.pin_memory) if self._is_pinned else batch,
            image_index=torch.from_numpy(chosen[own]),
        )

    def _read(self, rows: Int64[np.ndarray, " B"]) -> list[UInt8[np.ndarray, "H W *C"]]:
        """Read some images, a share a reader: a task for each image costs more than its copy."""

        def read(share: Int64[np.ndarray, " b"]) -> list[UInt8[np.ndarray, "H W *C"]]:
            return [self._store.image(int(row)) for row in share]

        shares = self._readers.map(read, np.array_split(rows, NUM_READERS))
        return [image for share in shares for image in share]
