"""Expected classes are written by hand; Pillow is the oracle of nearest neighbour."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvmmed.data.mask_pixels import class_maps, nearest_square, read_mask
from lvmmed.types import InputError


def _save(path: Path, values, **options) -> Path:
    Image.fromarray(np.array(values, dtype=np.uint8)).save(path, **options)
    return path


def _maps(*paths, size_px=2):
    return class_maps([[read_mask(path, size_px=size_px)] for path in paths])


@pytest.mark.parametrize("top", [1, 2, 200, 255])
def test_a_mask_of_two_levels_is_binary(tmp_path, top):
    maps, classes = _maps(_save(tmp_path / "a.png", [[0, top], [top, 0]]))
    assert classes == ("foreground",)
    np.testing.assert_array_equal(maps[0], [[0, 1], [1, 0]])


def test_a_one_bit_mask_and_a_full_and_an_empty_one_are_read(tmp_path):
    Image.fromarray(np.array([[True, False], [False, False]])).save(tmp_path / "bit.png")
    full = _save(tmp_path / "full.png", [[255, 255], [255, 255]])
    empty = _save(tmp_path / "empty.png", [[0, 0], [0, 0]])
    maps, _ = _maps(tmp_path / "bit.png", full, empty)
    assert maps.sum(axis=(1, 2)).tolist() == [1, 4, 0]


def test_masks_of_0_and_1_may_stand_beside_masks_of_0_and_255(tmp_path):
    one = _save(tmp_path / "one.png", [[0, 1], [0, 0]])
    large = _save(tmp_path / "large.png", [[0, 255], [255, 255]])
    maps, classes = _maps(one, large)
    assert classes == ("foreground",)
    assert maps.sum(axis=(1, 2)).tolist() == [1, 3]


def test_noise_of_jpeg_is_no_foreground_even_where_the_mask_is_empty(tmp_path):
    generator = np.random.default_rng(0)
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[8:40, 16:48] = 255
    noisy = np.clip(truth + generator.normal(0, 6, truth.shape), 0, 255).astype(np.uint8)
    noise = generator.integers(0, 9, truth.shape, dtype=np.uint8)
    full = _save(tmp_path / "full.jpg", np.repeat(noisy[..., None], 3, axis=2), quality=90)
    empty = _save(tmp_path / "empty.jpg", noise, quality=90)
    assert len(read_mask(full, size_px=64).levels) > 2
    maps, classes = _maps(full, empty, size_px=64)
    assert classes == ("foreground",)
    # ringing at the border may turn a pixel or two
    assert np.count_nonzero(maps[0] != (truth > 0)) <= 4
    assert not maps[1].any()


def test_levels_of_all_masks_together_are_class_indices(tmp_path):
    three = _save(tmp_path / "three.png", [[0, 1], [5, 0]])
    alone = _save(tmp_path / "alone.png", [[5, 0], [0, 0]])  # looks binary by itself
    maps, classes = _maps(three, alone)
    assert classes == ("1", "5")
    np.testing.assert_array_equal(maps, [[[0, 1], [2, 0]], [[2, 0], [0, 0]]])


def test_one_class_a_picture_is_still_a_class_of_its_own(tmp_path):
    paths = [_save(tmp_path / f"{k}.png", [[0, k], [0, 0]]) for k in (1, 2, 3)]
    maps, classes = _maps(*paths)
    assert classes == ("1", "2", "3")
    assert maps[:, 0, 1].tolist() == [1, 2, 3]


def test_few_grey_levels_are_classes_and_0_is_background_even_if_absent(tmp_path):
    _, classes = _maps(_save(tmp_path / "a.png", [[128, 255], [128, 255]]))
    assert classes == ("foreground",)
    maps, classes = _maps(_save(tmp_path / "b.png", [[64, 128], [255, 255]]))
    assert classes == ("64", "128", "255")
    assert maps.min() == 1


def test_a_palette_picture_gives_its_indices(tmp_path):
    picture = Image.new("P", (2, 2))
    picture.putdata([0, 1, 2, 2])
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "voc.png")
    maps, classes = _maps(tmp_path / "voc.png")
    assert classes == ("1", "2")
    np.testing.assert_array_equal(maps[0], [[0, 1], [2, 2]])


def test_parts_of_a_mask_are_put_together(tmp_path):
    parts = [
        read_mask(_save(tmp_path / "a.png", [[0, 255], [0, 0]]), size_px=2),
        read_mask(_save(tmp_path / "b.png", [[0, 0], [0, 255]]), size_px=2),
    ]
    maps, _ = class_maps([parts])
    np.testing.assert_array_equal(maps[0], [[0, 1], [0, 1]])


@pytest.mark.parametrize("size_px", [3, 7, 16, 40])
def test_stretching_equals_nearest_neighbour_of_pillow(size_px):
    values = np.random.default_rng(0).integers(0, 9, (13, 22), dtype=np.uint8)
    expected = Image.fromarray(values).resize((size_px, size_px), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(nearest_square(values, size_px), np.asarray(expected))


def test_size_and_levels_are_those_of_the_file(tmp_path):
    values = np.zeros((6, 10), dtype=np.uint8)
    values[5, 9] = 7  # lost at two pixels a side
    found = read_mask(_save(tmp_path / "a.png", values), size_px=2)
    assert (found.size, found.levels, found.is_lossy) == ((6, 10), (0, 7), False)
    assert found.square.shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.arange(64).reshape(8, 8), "64 grey levels; a mask has two, or class indices of at"),
        ([[[255, 0, 0], [0, 0, 0]]] * 2, "a colour picture; a mask is grey"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, values, match):
    path = _save(tmp_path / "a.png", values)
    with pytest.raises(InputError, match=match):
        _maps(path)


def test_fractions_and_negative_numbers_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, 0], [0, 0]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="holds fractions; a mask holds"):
        _maps(tmp_path / "a.tif")
    Image.fromarray(np.array([[-1, 0], [0, 0]], dtype=np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match="holds negative numbers"):
        _maps(tmp_path / "b.tif")


def test_broken_files_and_stacks_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png"):
        _maps(tmp_path / "a.png")
    pages = [Image.fromarray(k * np.eye(40, dtype=np.uint8)) for k in (50, 100, 200)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="holds 3 slices; a mask is one picture"):
        _maps(tmp_path / "b.tif")


def test_faint_jpeg_masks_are_refused(tmp_path):
    path = _save(tmp_path / "a.jpg", np.eye(16), quality=95)
    with pytest.raises(InputError, match="cannot be told from noise, save them as PNG"):
        _maps(path)


def test_indices_take_no_parts_and_no_jpeg(tmp_path):
    indices = read_mask(_save(tmp_path / "a.png", [[0, 1], [2, 0]]), size_px=2)
    jpeg = read_mask(_save(tmp_path / "b.jpg", np.full((8, 8), 255)), size_px=2)
    with pytest.raises(
        InputError, match=r"b\.jpg: a JPEG picture, while a\.png holds class indices"
    ):
        class_maps([[indices], [jpeg]])
    with pytest.raises(
        InputError, match=r"a\.png: several parts, while a\.png holds class indices"
    ):
        class_maps([[indices, indices]])
