"""What a step sees depends on its number only."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from reference.medical_files import write_dicom
from reference.tiny_store import write_tiny_store

from lvmmed import distributed
from lvmmed.config import DataConfig
from lvmmed.data.prepare import prepare
from lvmmed.data.store import Store
from lvmmed.recipes.image_feed import ImageFeed, load_images, make_sampler, owners
from lvmmed.types import InputError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_tiny_store(tmp_path_factory.mktemp("feed") / "store")


ROWS = np.arange(4, 24)


def sampler_of(store, *, batch_size=8, graph_size=4, **data):
    return make_sampler(
        store,
        ROWS,
        data=DataConfig(**data),
        batch_size=batch_size,
        graph_size=graph_size,
        seed=0,
    )


def test_images_are_those_of_the_sampler_in_any_order_of_steps(store):
    sampler = sampler_of(store)
    with ImageFeed(store, ROWS, sampler) as feed:
        for step in (0, 1, 5, 2):
            draw = feed.get(step, num_steps=6)
            expected = ROWS[sampler.batch(step)].tolist()
            torch.testing.assert_close(draw.batch.pixels, load_images(store, expected).pixels)
            assert draw.sizes.tolist() == store.sizes()[expected].tolist()
            assert draw.wait_s >= 0


def test_images_of_a_step_are_read_several_at_a_time(store, monkeypatch):
    read, meeting = Store.image, threading.Barrier(8, timeout=60)

    def meet_and_read(self, index):
        meeting.wait()  # eight readers, or none goes on
        return read(self, index)

    monkeypatch.setattr(Store, "image", meet_and_read)
    with ImageFeed(store, ROWS, sampler_of(store)) as feed:
        draw = feed.get(0, num_steps=1)
    monkeypatch.undo()
    expected = ROWS[sampler_of(store).batch(0)].tolist()
    torch.testing.assert_close(draw.batch.pixels, load_images(store, expected).pixels)


def test_a_rank_gets_its_own_images_and_all_sizes(store, monkeypatch):
    sampler = sampler_of(store)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with ImageFeed(store, ROWS, sampler) as feed:
        draw = feed.get(0, num_steps=1)
    own = ROWS[sampler.batch(0)][4:]
    torch.testing.assert_close(draw.batch.pixels, load_images(store, own.tolist()).pixels)
    assert len(draw.sizes) == 8


def _order(store, seed, *, batch_size=8):
    """Numbers of the images of every batch of one pass, and the pixels' rows they stand for."""
    with ImageFeed(store, ROWS, sampler_of(store)) as feed:
        generator = torch.Generator().manual_seed(seed)
        draws = list(feed.all_images(batch_size, generator=generator))
    for draw in draws:
        expected = load_images(store, ROWS[draw.image_index.numpy()].tolist())
        torch.testing.assert_close(draw.batch.pixels, expected.pixels)
    return [draw.image_index.tolist() for draw in draws]


def test_a_pass_over_all_images_is_in_a_random_order_of_the_seed(store):
    first, second, last = _order(store, 1)
    drawn = first + second + last[:4]
    assert sorted(drawn) == list(range(20))
    assert drawn != list(range(20))
    assert last[4:] == first[:4]  # filled up from the start
    assert _order(store, 1) == [first, second, last]
    assert _order(store, 2) != [first, second, last]


def test_ranks_share_one_pass_over_all_images(store, monkeypatch):
    alone = _order(store, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(_order(store, 1))
    assert [a + b for a, b in zip(*shares, strict=True)] == alone


def test_an_error_of_the_thread_is_raised_to_the_caller(store):
    with ImageFeed(store, np.array([99]), sampler_of(store)) as feed, pytest.raises(IndexError):
        feed.get(0, num_steps=1)


def test_owners_are_patients_else_volumes_else_pixels(store, monkeypatch):
    columns = {
        "patient_key": ["p", None, None, None],
        "volume_key": ["v", "v", None, None],
        "pixel_hash": ["h", "h", "h", None],
    }
    monkeypatch.setattr(Store, "column", lambda self, name: columns[name])  # noqa: ARG005
    assert owners(store) == ["patient h/1", "volume h/1", "pixels h", "image 3"]


def test_two_patients_of_equal_pixels_stay_two(store, monkeypatch):
    columns = {
        "patient_key": ["p", "q", "p"],
        "volume_key": [None] * 3,
        "pixel_hash": ["h", "h", "i"],
    }
    monkeypatch.setattr(Store, "column", lambda self, name: columns[name])  # noqa: ARG005
    assert owners(store) == ["patient h/1", "patient h/2", "patient h/1"]


def test_who_owns_what_is_the_same_under_every_salt(tmp_path, monkeypatch):
    values = np.random.default_rng(0)
    (tmp_path / "mr").mkdir()
    for number in range(12):
        pixels = values.integers(0, 2000, (32, 32)).astype(np.uint16)
        header = {"PatientID": f"MRN-{number // 2}", "Modality": "MR"}
        write_dicom(tmp_path / "mr" / f"{number:02d}.dcm", pixels, **header)
    stores = []
    for salt in ("first salt", "second salt"):
        monkeypatch.setenv("LVMMED_SALT", salt)
        prepare([str(tmp_path / "mr")], tmp_path / salt, size=24)
        stores.append(Store.open(tmp_path / salt))
    first, second = stores
    assert set(first.column("patient_key")).isdisjoint(second.column("patient_key"))
    assert owners(first) == owners(second)
    assert len(set(owners(first))) == 6


def test_balance_and_composition_reach_the_sampler(store):
    names = np.array(store.column("dataset"))
    graphs = names[ROWS[sampler_of(store, composition="dataset").batch(0)]].reshape(2, 4)
    assert all(len(set(graph)) == 1 for graph in graphs.tolist())
    balanced = names[ROWS[sampler_of(store, balance="dataset").batch(0)]]
    assert (balanced == "odd").sum() == 4


def test_batches_that_cannot_be_are_refused(store, monkeypatch):
    with pytest.raises(InputError, match=r"train.batch_size: got 64, but .* 20 images"):
        sampler_of(store, batch_size=64)
    with pytest.raises(InputError, match=r"data.composition: got 'volume', .* no graphs"):
        sampler_of(store, composition="volume", graph_size=1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match=r"got 12, need a multiple of 8 \(2 processes x"):
        sampler_of(store, batch_size=12)


def test_sizes_are_those_of_the_images_of_a_step(tmp_path):
    (tmp_path / "pictures").mkdir()
    values = np.random.default_rng(0)
    for number in range(12):
        pixels = values.integers(0, 256, (20 + number, 40 - number), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02d}.png")
    prepare([str(tmp_path / "pictures")], tmp_path / "store", size=64)
    store, rows = Store.open(tmp_path / "store"), np.arange(4, 12)
    sampler = make_sampler(store, rows, data=DataConfig(), batch_size=4, graph_size=4, seed=0)
    with ImageFeed(store, rows, sampler) as feed:
        for step in range(2):
            draw = feed.get(step, num_steps=2)
            assert torch.equal(draw.sizes[draw.own], draw.batch.sizes)
            assert len({tuple(size) for size in draw.sizes.tolist()}) == 4


def test_batches_of_whole_volumes_are_the_same_under_every_salt(tmp_path, monkeypatch):
    values = np.random.default_rng(0)
    (tmp_path / "mr").mkdir()
    for number in range(24):
        pixels = values.integers(0, 2000, (32, 32)).astype(np.uint16)
        header = {
            "PatientID": f"MRN-{number // 4}",
            "SeriesInstanceUID": f"1.2.{number // 4}",
            "Modality": "MR",
        }
        write_dicom(tmp_path / "mr" / f"{number:02d}.dcm", pixels, **header)
    batches = []
    for salt in ("first salt", "second salt"):
        monkeypatch.setenv("LVMMED_SALT", salt)
        prepare([str(tmp_path / "mr")], tmp_path / salt, size=24)
        sampler = make_sampler(
            Store.open(tmp_path / salt),
            np.arange(24),
            data=DataConfig(composition="volume"),
            batch_size=8,
            graph_size=4,
            seed=0,
        )
        batches.append([sampler.batch(step).tolist() for step in range(3)])
    assert batches[0] == batches[1]
