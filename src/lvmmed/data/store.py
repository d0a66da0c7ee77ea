"""The image store: a folder with an index and memory-mapped pixels, written once.

Files: `index.parquet` (one row an image, columns `INDEX_COLUMNS`), `shard_00000.bin` ... (raw uint8
pixels, row by row, channels last), `store.json` (what the whole is; written last, so a folder
without it is no store), `quarantine.csv` (what could not be read, and why).
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import UInt8

from lvmmed.data.stored_image import store_row
from lvmmed.files import file_sha256
from lvmmed.types import FORMAT_VERSION, INDEX_COLUMNS, ImageRecord, InputError

SHARD_BYTES = 1 << 30
"""A shard is closed when the next image would make it larger."""

ROWS_PER_GROUP = 20_000
_WORD = pa.dictionary(pa.int32(), pa.string())
_TYPES = {
    "shard": pa.int32(),
    "offset": pa.int64(),
    "height_px": pa.int32(),
    "width_px": pa.int32(),
    "channels": pa.int8(),
    "dataset": _WORD,
    "modality": _WORD,
    "organ": _WORD,
    "slice_index": pa.int32(),
}
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in INDEX_COLUMNS])
"""Arrow types of index.parquet."""


class Store:
    """An image store opened for reading; cheap to pickle, safe to read from many processes.

    Make one with `Store.open`, which checks the files.

    Args:
        path: the folder.
        meta: content of store.json.

    Attributes:
        path: the folder.
        meta: content of store.json.
        fingerprint: SHA-256 of the index's rows, the same for the same images in the same order,
            whatever the salt of their keys.
    """

    path: Path
    meta: dict[str, Any]
    fingerprint: str

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta
        self.fingerprint = meta["fingerprint"]
        names = ["shard", "offset", "height_px", "width_px", "channels"]
        table = pq.read_table(path / "index.parquet", columns=names, memory_map=True)
        self._shard, self._offset, self._height, self._width, self._channels = (
            table[name].to_numpy() for name in names
        )
        self._maps: dict[int, np.memmap[Any, Any]] = {}

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a finished store.

        Args:
            path: its folder.

        Returns:
            The store.

        Raises:
            InputError: no store there, an unfinished or newer one, or files missing or cut short.
        """
        path = Path(path)
        meta = read_meta(path)
        for shard in meta["shards"]:
            file = path / shard["name"]
            found = file.stat().st_size if file.is_file() else -1
            if found != shard["num_bytes"]:
                raise InputError(
                    f"{file}: {'missing' if found < 0 else f'{found} bytes'}, "
                    f"need {shard['num_bytes']} bytes; copy or prepare the store again"
                )
        if not (path / "index.parquet").is_file():
            raise InputError(f"{path / 'index.parquet'}: missing; copy or prepare the store again")
        return cls(path, meta)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path: the other process maps the files itself."""
        return Store.open, (self.path,)

    def __len__(self) -> int:
        return len(self._offset)

    def image(self, index: int) -> UInt8[np.ndarray, "H W *C"]:
        """Copy one image out of its shard.

        Args:
            index: row of the index, from 0.

        Returns:
            Pixels [H,W] or [H,W,3].

        Raises:
            IndexError: the index is not in 0 .. len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a store of {len(self)}")
        shape: tuple[int, ...] = (int(self._height[index]), int(self._width[index]))
        if self._channels[index] == 3:
            shape = (*shape, 3)
        start = int(self._offset[index])
        shard = self._map(int(self._shard[index]))
        return np.array(shard[start : start + int(np.prod(shape))]).reshape(shape)

    def _map(self, number: int) -> "np.memmap[Any, Any]":
        if number not in self._maps:
            file = self.path / self.meta["shards"][number]["name"]
            self._maps[number] = np.memmap(file, dtype=np.uint8, mode="r")
        return self._maps[number]

    def column(self, name: str) -> list[Any]:
        """Read one column of the index as Python values.

        Args:
            name: one of `INDEX_COLUMNS`.

        Returns:
            One value an image, None where unknown.

        Raises:
            InputError: no such column.
        """
        if name not in INDEX_COLUMNS:
            raise InputError(f"column {name!r}: allowed are {', '.join(INDEX_COLUMNS)}")
        table = pq.read_table(self.path / "index.parquet", columns=[name], memory_map=True)
        values: list[Any] = table[name].to_pylist()
        return values

    @property
    def table(self) -> pa.Table:
        """The whole index (about 300 bytes an image in memory)."""
        return pq.read_table(self.path / "index.parquet", memory_map=True)

    def sizes(self) -> np.ndarray:
        """Heights and widths of all images, int64 [n, 2]."""
        return np.stack([self._height, self._width], axis=1).astype(np.int64)

    def verify(self) -> list[str]:
        """Compare every file with its checksum; gives the names of those that differ."""
        expected = {s["name"]: s["sha256"] for s in self.meta["shards"]}
        expected["index.parquet"] = self.meta["index_sha256"]
        return [
            name for name, digest in expected.items() if file_sha256(self.path / name) != digest
        ]


def read_meta(path: Path) -> dict[str, Any]:
    """Read store.json.

    Args:
        path: folder of the store.

    Returns:
        Its content.

    Raises:
        InputError: missing (with the reason, if a preparation was cut off), damaged, or newer than
            this code.
    """
    file = path / "store.json"
    if not file.is_file():
        if (path / ".parts").is_dir():
            raise InputError(f"{path}: prepare has not finished; run the same prepare again")
        raise InputError(
            f"{path}: no image store; make one with lvmmed prepare SOURCE --out {path}"
        )
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = int(meta["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged; prepare the store again") from error
    if found > FORMAT_VERSION:
        raise InputError(
            f"{file}: format_version {found}, this version reads up to {FORMAT_VERSION}; "
            "update lvmmed"
        )
    return meta


class StoreWriter:
    """Writes a store image by image in bounded memory; nothing counts until `finish`.

    Usage: `writer = StoreWriter(out, size=72); writer.add(record, dataset="a"); writer.finish()`.

    Args:
        out: folder to write into, made if missing.
        size: short side of every stored image in pixels.
        salt_fingerprint: tells stores of different salts apart.
        shard_bytes: largest size of a shard.

    Raises:
        InputError: a store is there already.
    """

    def __init__(
        self,
        out: Path,
        *,
        size: int,
        salt_fingerprint: str | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if (out / "store.json").exists():
            raise InputError(f"{out}: holds a store already; remove it or choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.size = size
        self._salt_fingerprint = salt_fingerprint
        self._shard_bytes = shard_bytes
        self._shards: list[dict[str, Any]] = []
        self._file: Any = None
        self._rows: list[dict[str, Any]] = []
        self._index: Any = pq.ParquetWriter(self._draft("index.parquet"), SCHEMA)
        self._fingerprint = hashlib.sha256()
        self._key_order: dict[str, int] = {}
        self._hash = hashlib.sha256()
        self._position = 0
        self._num_images = 0
        self._counters = {name: Counter[str]() for name in ("dataset", "modality", "intensity")}

    def _draft(self, name: str) -> Path:
        return self.out / f"{name}.tmp"

    def add(self, record: ImageRecord, *, dataset: str, sha256: str = "") -> None:
        """Bring one record to the store's size and write it.

        An InputError says when it is too small, or too long and narrow, to be stored.

        Args:
            record: raw, or uint8 with its policy applied.
            dataset: name of its data set.
            sha256: hash of the file it came from.
        """
        row, data = store_row(record, size=self.size, dataset=dataset, sha256=sha256)
        self.append(row, data)

    def append(self, row: Mapping[str, Any], data: bytes | memoryview) -> None:
        """Write pixels that have the store's size already, with their row of the index.

        Args:
            row: index columns but image_id, shard and offset, and `policy` (without measurements).
            data: height x width x channels bytes.
        """
        if self._file is None or self._position + len(data) > self._shard_bytes:
            self._next_shard()
        full = {
            **{name: row.get(name) for name in INDEX_COLUMNS},
            "image_id": f"{self._num_images:09d}",
            "shard": len(self._shards) - 1,
            "offset": self._position,
        }
        self._file.write(data)
        self._hash.update(data)
        self._position += len(data)
        self._num_images += 1
        self._update_fingerprint(full)
        for name, counter in self._counters.items():
            value = row.get("policy") if name == "intensity" else row.get(name)
            counter[value or "unknown"] += 1
        self._rows.append(full)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush_rows()

    def _update_fingerprint(self, row: dict[str, Any]) -> None:
        """Keys count by the order of their first appearance, so that the salt does not matter."""
        plain = dict(row)
        for name in ("patient_key", "volume_key"):
            if row[name] is not None:
                plain[name] = self._key_order.setdefault(row[name], len(self._key_order))
        self._fingerprint.update(json.dumps(list(plain.values())).encode())

    def _next_shard(self) -> None:
        self._close_shard()
        name = f"shard_{len(self._shards):05d}.bin"
        self._shards.append({"name": name})
        self._file = self._draft(name).open("wb")
        self._hash = hashlib.sha256()
        self._position = 0

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._shards[-1].update(num_bytes=self._position, sha256=self._hash.hexdigest())

    def _flush_rows(self) -> None:
        if self._rows:
            self._index.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows = []

    def finish(self, counts: Mapping[str, Any] | None = None) -> Store:
        """Close all files, move them to their names, and write store.json last.

        Args:
            counts: what else to keep under "counts" (empties, quarantined files, ...).

        Returns:
            The store, opened.

        Raises:
            InputError: no image was added.
        """
        self.close()
        if not self._num_images:
            raise InputError(f"{self.out}: no image to store")
        os.replace(self._draft("index.parquet"), self.out / "index.parquet")  # noqa: PTH105
        for shard in self._shards:
            os.replace(self._draft(shard["name"]), self.out / shard["name"])  # noqa: PTH105
        meta = {
            "format_version": FORMAT_VERSION,
            "code_version": version("lvmmed"),
            "size": self.size,
            "num_images": self._num_images,
            "fingerprint": self._fingerprint.hexdigest(),
            "salt_fingerprint": self._salt_fingerprint,
            "datasets": dict(sorted(self._counters["dataset"].items())),
            "modalities": dict(sorted(self._counters["modality"].items())),
            "intensity_policies": dict(sorted(self._counters["intensity"].items())),
            "counts": {**_duplicates(self.out), **(counts or {})},
            "shards": self._shards,
            "index_sha256": file_sha256(self.out / "index.parquet"),
        }
        draft = self._draft("store.json")
        draft.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, self.out / "store.json")  # noqa: PTH105
        return Store.open(self.out)

    def close(self) -> None:
        """Close the files; without `finish` they stay drafts that no reader accepts."""
        self._close_shard()
        self._flush_rows()
        self._index.close()


def _duplicates(out: Path) -> dict[str, int]:
    column = pq.read_table(out / "index.parquet", columns=["pixel_hash"])["pixel_hash"]
    return {"duplicates": len(column) - int(pc.count_distinct(column).as_py())}
