import hashlib
import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from lvmmed.data.store import Store, StoreWriter
from lvmmed.types import INDEX_COLUMNS, ImageRecord, InputError

RNG = np.random.default_rng(0)
PICTURES = [
    RNG.integers(0, 256, shape, dtype=np.uint8)
    for shape in ((16, 20), (30, 16, 3), (16, 16), (16, 40, 3), (17, 16))
]


def record(pixels, **fields) -> ImageRecord:
    return ImageRecord(pixels=pixels, source="set/a.png", **fields)


def write(out, pictures=PICTURES, *, shard_bytes=1 << 30, **fields) -> Store:
    writer = StoreWriter(out, size=16, shard_bytes=shard_bytes, salt_fingerprint="abc")
    for pixels in pictures:
        writer.add(record(pixels, **fields), dataset="set", sha256="f00")
    return writer.finish({"quarantined": 2})


@pytest.mark.parametrize("shard_bytes", [1 << 30, 2000, 1])
def test_images_come_back_as_they_went_in(tmp_path, shard_bytes):
    store = write(tmp_path / "s", shard_bytes=shard_bytes)
    assert len(store) == 5
    for index, pixels in enumerate(PICTURES):
        assert np.array_equal(store.image(index), pixels)
    assert len(store.meta["shards"]) == {1 << 30: 1, 2000: 4, 1: 5}[shard_bytes]
    assert store.sizes().tolist() == [[16, 20], [30, 16], [16, 16], [16, 40], [17, 16]]


def test_a_returned_image_is_the_callers_own(tmp_path):
    store = write(tmp_path / "s")
    store.image(0)[:] = 0
    assert np.array_equal(store.image(0), PICTURES[0])


def test_the_index_has_exactly_the_columns_of_the_contract(tmp_path):
    store = write(tmp_path / "s", modality="MRI", slice_index=7, volume_key="v")
    assert tuple(pq.read_schema(tmp_path / "s/index.parquet").names) == INDEX_COLUMNS
    assert tuple(store.table.column_names) == INDEX_COLUMNS
    assert store.column("modality") == ["MRI"] * 5
    assert store.column("slice_index") == [7] * 5
    assert store.column("organ") == [None] * 5
    assert len(set(store.column("image_id"))) == 5
    assert store.column("pixel_hash")[1] == hashlib.sha256(PICTURES[1].tobytes()).hexdigest()


def test_an_unknown_column_is_refused(tmp_path):
    with pytest.raises(InputError, match="column 'label': allowed are image_id, shard"):
        write(tmp_path / "s").column("label")


def test_an_index_out_of_range_is_refused(tmp_path):
    store = write(tmp_path / "s")
    for index in (-1, 5):
        with pytest.raises(IndexError):
            store.image(index)


def test_store_json_says_what_the_store_is(tmp_path):
    meta = write(tmp_path / "s", [*PICTURES, PICTURES[0]]).meta
    assert meta["format_version"] == 1
    assert (meta["size"], meta["num_images"], meta["salt_fingerprint"]) == (16, 6, "abc")
    assert meta["counts"] == {"duplicates": 1, "quarantined": 2}
    assert meta["intensity_policies"] == {"none": 6}
    shard = (tmp_path / "s" / "shard_00000.bin").read_bytes()
    assert meta["shards"][0]["sha256"] == hashlib.sha256(shard).hexdigest()


def test_a_store_travels_to_another_process_by_its_path(tmp_path):
    store = write(tmp_path / "s")
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.image(3), PICTURES[3])
    assert len(pickle.dumps(store)) < 500


def test_the_fingerprint_follows_content_and_order_but_not_the_salt(tmp_path):
    first = write(tmp_path / "a", patient_key="p1", volume_key="v1").fingerprint
    assert write(tmp_path / "b", patient_key="p2", volume_key="v2").fingerprint == first
    assert write(tmp_path / "c", PICTURES[::-1], patient_key="p1").fingerprint != first
    changed = [PICTURES[0] ^ np.uint8(1), *PICTURES[1:]]
    assert write(tmp_path / "d", changed, patient_key="p1", volume_key="v1").fingerprint != first
    assert write(tmp_path / "e").fingerprint != first  # nobody's images differ from somebody's


def test_checksums_find_a_changed_byte(tmp_path):
    store = write(tmp_path / "s")
    assert store.verify() == []
    data = bytearray((tmp_path / "s/shard_00000.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "s/shard_00000.bin").write_bytes(data)
    assert store.verify() == ["shard_00000.bin"]


def test_a_store_is_never_overwritten(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(InputError, match="holds a store already; remove it or choose another"):
        StoreWriter(tmp_path / "s", size=16)


def test_an_unfinished_store_is_no_store(tmp_path):
    writer = StoreWriter(tmp_path / "s", size=16)
    writer.add(record(PICTURES[0]), dataset="set")
    writer.close()
    with pytest.raises(InputError, match="no image store; make one with lvmmed prepare"):
        Store.open(tmp_path / "s")
    (tmp_path / "s" / ".parts").mkdir()
    with pytest.raises(InputError, match="prepare has not finished; run the same prepare again"):
        Store.open(tmp_path / "s")


def test_a_store_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="no image to store"):
        StoreWriter(tmp_path / "s", size=16).finish()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere: no image store"):
        Store.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version 99, this version reads up to 1; update lvmmed"),
        ({"format_version": "x"}, "damaged; prepare the store again"),
    ],
)
def test_newer_and_damaged_stores_are_refused(tmp_path, change, message):
    meta = write(tmp_path / "s").meta
    (tmp_path / "s/store.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(InputError, match=message):
        Store.open(tmp_path / "s")


def test_files_missing_or_cut_short_are_found_at_opening(tmp_path):
    write(tmp_path / "s")
    shard = tmp_path / "s/shard_00000.bin"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"shard_00000.bin: {size - 1} bytes, need {size} bytes"):
        Store.open(tmp_path / "s")
    shard.unlink()
    with pytest.raises(InputError, match=f"shard_00000.bin: missing, need {size} bytes"):
        Store.open(tmp_path / "s")


def test_a_missing_index_is_found_at_opening(tmp_path):
    write(tmp_path / "s")
    (tmp_path / "s/index.parquet").unlink()
    with pytest.raises(InputError, match=r"index\.parquet: missing"):
        Store.open(tmp_path / "s")
