"""Expected classes are written by hand; Pillow is the oracle of nearest neighbour.

Smoothed masks are made by Pillow's filters, whose result is compared with the mask before.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageFilter

from lvmmed.data.mask_pixels import class_maps, level_usage, nearest_square, read_mask
from lvmmed.data.readers import read_records
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


def _disc(side: int, radius: float, *, level: int = 255) -> np.ndarray:
    rows, cols = np.mgrid[:side, :side] - side / 2
    return np.where(rows**2 + cols**2 < radius**2, level, 0).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_antialiased_masks_are_binary_with_a_warning(tmp_path, dtype):
    paths, truths = [], []
    for k in range(4):
        large = _disc(256, 60 + k)
        shares = (large > 0).reshape(64, 4, 64, 4).mean(axis=(1, 3))
        values = np.rint(shares * np.iinfo(dtype).max).astype(dtype)
        Image.fromarray(values).save(tmp_path / f"{k}.png")
        paths.append(tmp_path / f"{k}.png")
        truths.append(shares >= 0.5)  # 127.5 is stored as 128
    assert len(np.unique(values)) > 8
    with pytest.warns(UserWarning, match=r"smoothed borders .*in 4 of 4 masks: foreground is what"):
        maps, classes = _maps(*paths, size_px=64)
    assert classes == ("foreground",)
    np.testing.assert_array_equal(maps, truths)


@pytest.mark.parametrize("resample", [Image.BILINEAR, Image.BICUBIC, Image.LANCZOS])
@pytest.mark.parametrize("side", [100, 300, 400])
def test_masks_of_another_size_are_binary_with_a_warning(tmp_path, resample, side):
    Image.fromarray(_disc(200, 60)).resize((side, side), resample).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="smoothed borders"):
        maps, classes = _maps(tmp_path / "a.png", size_px=side)
    assert classes == ("foreground",)
    truth = _disc(side, 60 * side / 200) > 0
    # one pixel along the outline at most, which is 2 pi r pixels long
    assert np.count_nonzero((maps[0] > 0) != truth) < 2 * np.pi * 60 * side / 200


def test_blurred_masks_are_binary_with_a_warning(tmp_path):
    blurred = Image.fromarray(_disc(200, 60)).filter(ImageFilter.GaussianBlur(3))
    blurred.save(tmp_path / "a.png")
    assert len(np.unique(np.asarray(blurred))) > 32
    with pytest.warns(UserWarning, match=r"grey levels 0, 1, 2, 3, 4, 5, 6, \.\.\., 255"):
        maps, _ = _maps(tmp_path / "a.png", size_px=200)
    np.testing.assert_array_equal(maps[0], np.asarray(blurred) > 127)


def test_one_soft_pixel_makes_no_class(tmp_path):
    paths = []
    for k in range(3):
        values = np.zeros((64, 64), dtype=np.uint8)
        values[10:30, 10:30] = 255
        values[9, 10] = 128 if k == 1 else 0
        paths.append(_save(tmp_path / f"{k}.png", values))
    with pytest.warns(UserWarning, match=r"1\.png: .*levels 0, 128, 255\) in 1 of 3 masks: .* 255"):
        maps, classes = _maps(*paths, size_px=64)
    assert classes == ("foreground",)
    assert maps.sum(axis=(1, 2)).tolist() == [400, 401, 400]


def test_half_is_that_of_the_largest_number_of_all_smoothed_masks(tmp_path):
    clear = np.zeros((32, 32), dtype=np.uint8)
    clear[8:24, 8:24] = 255
    clear[7, 8:24] = 100
    faint = np.zeros((32, 32), dtype=np.uint8)
    faint[4, 4] = 90  # what smoothing left of an object
    paths = [_save(tmp_path / "a.png", clear), _save(tmp_path / "b.png", faint)]
    with pytest.warns(UserWarning, match="in 2 of 2 masks"):
        maps, _ = _maps(*paths, size_px=32)
    assert maps.sum(axis=(1, 2)).tolist() == [256, 0]


@pytest.mark.parametrize(
    "levels", [(128, 255), (64, 128, 192, 255), (50, 250), (1, 200), (40, 41, 42)]
)
def test_grey_levels_with_areas_of_their_own_are_classes(tmp_path, levels):
    values = np.zeros((80, 80), dtype=np.uint8)
    for k, level in enumerate(levels):  # nested squares: each lies between a smaller and a larger
        values[10 + 8 * k : 70 - 8 * k, 10 + 8 * k : 70 - 8 * k] = level
    maps, classes = _maps(_save(tmp_path / "a.png", values), size_px=80)
    assert classes == tuple(str(level) for level in levels)
    np.testing.assert_array_equal(np.array((0, *levels))[maps[0]], values)


def test_a_ring_between_background_and_a_large_foreground_is_a_class(tmp_path):
    # as in masks of the optic disc: cup 0, rim 128 (4 pixels wide), all else 255
    rim = np.where(_disc(400, 40) > 0, 128, 255)
    values = np.where(_disc(400, 36) > 0, 0, rim)
    assert 0 < np.count_nonzero(values == 128) < 0.01 * values.size
    _, classes = _maps(_save(tmp_path / "a.png", values), size_px=100)
    assert classes == ("128", "255")


def test_small_classes_alone_in_their_masks_are_classes(tmp_path):
    both = np.zeros((64, 64), dtype=np.uint8)
    both[:40, :40], both[50:54, 50:54] = 255, 128
    alone = np.zeros((64, 64), dtype=np.uint8)
    alone[5:8, 5:8] = 128
    paths = [_save(tmp_path / f"{k}.png", v) for k, v in enumerate((both, alone, alone))]
    _, classes = _maps(*paths, size_px=64)
    assert classes == ("128", "255")


def test_smoothed_classes_are_refused_with_their_levels(tmp_path):
    values = np.zeros((80, 80), dtype=np.uint8)
    values[10:70, 10:70], values[30:50, 30:50] = 255, 128
    values[9, 10:70] = 77
    match = r"a\.png: grey levels 0, 77, 128, 255, of which 77 line others as smoothing does; save"
    with pytest.raises(InputError, match=match):
        _maps(_save(tmp_path / "a.png", values), size_px=80)


def test_smoothed_lines_without_a_core_are_refused(tmp_path):
    values = np.zeros((40, 40), dtype=np.uint8)
    values[:, 9:14] = (60, 130, 255, 190, 20)  # more pixels between than at the top
    with pytest.raises(InputError, match=r"grey levels 0, 20, 60, 130, 190, 255, of which 20, 60"):
        _maps(_save(tmp_path / "a.png", values), size_px=40)


def test_a_photograph_is_no_smoothed_mask(tmp_path):
    noise = np.random.default_rng(0).normal(120, 60, (64, 64)).clip(0, 255)
    with pytest.raises(InputError, match=r"grey levels; a mask has two.*\(found 0, 1, .*, 255\)"):
        _maps(_save(tmp_path / "a.png", noise), size_px=64)


def test_usage_of_levels_by_hand():
    pixels = np.array(
        [
            [0, 0, 0, 0, 0],
            [0, 9, 9, 9, 0],
            [5, 9, 9, 9, 0],
            [0, 9, 9, 9, 0],
            [0, 0, 0, 0, 2],
        ],
        dtype=np.uint8,
    )
    levels, usage = level_usage(pixels)
    assert levels == (0, 2, 5, 9)
    # 2 and 5 touch both 0 and 9; of the nine 9 only the middle one has none but 9 around it
    assert usage.tolist() == [[14, 0, 0], [1, 1, 0], [1, 1, 0], [9, 0, 1]]
    # without background nothing is a border of it
    assert level_usage(pixels + np.uint8(1))[1][:, 1].tolist() == [0, 0, 0, 0]
    assert level_usage(np.array([[3]], dtype=np.uint8))[1].tolist() == [[1, 0, 0]]


def _nifti(path: Path, values: np.ndarray, *, label: bool = False, affine=None) -> Path:
    image = nib.Nifti1Image(values, np.diag([1, 1, 5, 1]) if affine is None else affine)
    if label:
        image.header.set_intent("label")
    nib.save(image, path)
    return path


@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_nifti_masks_may_be_empty_and_say_that_they_are_labels(tmp_path, label, suffix, dtype):
    empty = np.zeros((8, 8), dtype=dtype)
    full = empty.copy()
    full[2:5, 1:3] = 1
    maps, classes = _maps(
        _nifti(tmp_path / f"empty{suffix}", empty, label=label),
        _nifti(tmp_path / f"full{suffix}", full[..., None], label=label),
        size_px=8,
    )
    assert classes == ("foreground",)
    assert maps.sum(axis=(1, 2)).tolist() == [0, 6]


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1), (6, 9, 1, 1)])
def test_a_nifti_mask_is_turned_as_its_image_is(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 31, (6, 9)).astype(np.int16)
    affine = np.array([[0, -2, 0, 5], [1, 0, 0, 7], [0, 0, -3, 1], [0, 0, 0, 1.0]])
    path = _nifti(tmp_path / "a.nii.gz", values.reshape(shape), affine=affine)
    (image,) = read_records(path)
    mask = read_mask(path, size_px=18)
    assert mask.size == image.size
    np.testing.assert_array_equal(mask.square, nearest_square(image.pixels, 18))


def test_nifti_masks_that_are_no_picture_are_refused(tmp_path):
    volume = np.zeros((8, 8, 4), dtype=np.uint8)
    volume[2:5, 2:5] = 1
    for name, values, number in (("v", volume, 4), ("t", volume[:, :, None], 4)):
        path = _nifti(tmp_path / f"{name}.nii", values, label=True)
        with pytest.raises(InputError, match=f"holds {number} slices; a mask is one picture"):
            read_mask(path, size_px=4)
    path = _nifti(tmp_path / "f.nii", np.full((8, 8), 0.5, dtype=np.float32))
    with pytest.raises(InputError, match="holds fractions"):
        read_mask(path, size_px=4)
    (tmp_path / "cut.nii").write_bytes(path.read_bytes()[:400])
    with pytest.raises(InputError, match=r"cut\.nii: damaged or unusual file"):
        read_mask(tmp_path / "cut.nii", size_px=4)
    with pytest.raises(InputError, match=r"x\.nii: no such file"):
        read_mask(tmp_path / "x.nii", size_px=4)


def test_a_stack_of_one_filled_page_is_no_picture(tmp_path):
    pages = [Image.fromarray(_disc(40, radius)) for radius in (0, 12, 0)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="holds 3 slices; a mask is one picture"):
        read_mask(tmp_path / "a.tif", size_px=4)


def test_a_palette_picture_gives_its_indices(tmp_path):
    picture = Image.new("P", (2, 2))
    picture.putdata([0, 1, 2, 2])
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "voc.png")
    maps, classes = _maps(tmp_path / "voc.png")
    assert classes == ("1", "2")
    np.testing.assert_array_equal(maps[0], [[0, 1], [2, 2]])


def _square(top: int, side: int, *, shape=(40, 40)) -> np.ndarray:
    drawn = np.zeros(shape, dtype=bool)
    drawn[top : top + side, top : top + side] = True
    return drawn


@pytest.mark.parametrize(
    "as_palette",
    [
        lambda picture: picture.quantize(2),
        lambda picture: picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
        lambda picture: picture.convert("P"),
    ],
)
def test_a_palette_chosen_for_each_picture_turns_no_mask_round(tmp_path, as_palette):
    drawn = [_square(3, 12), _square(1, 36), _square(0, 0), _square(0, 40)]
    paths = []
    for number, mask in enumerate(drawn):
        paths.append(tmp_path / f"{number}.png")
        as_palette(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))).save(paths[-1])
    with Image.open(paths[0]) as first:
        assert first.mode == "P"
    maps, classes = _maps(*paths, size_px=40)
    assert classes == ("foreground",)
    np.testing.assert_array_equal(maps, drawn)


def test_grey_palettes_count_as_the_same_picture_in_grey(tmp_path):
    values = np.zeros((40, 40), dtype=np.uint8)
    values[5:20, 5:35], values[25:38, 5:35] = 128, 255
    Image.fromarray(values).quantize(3).save(tmp_path / "palette.png")
    plain = _save(tmp_path / "plain.png", values)
    maps, classes = _maps(tmp_path / "palette.png", plain, size_px=40)
    assert classes == ("128", "255")
    np.testing.assert_array_equal(np.array([0, 128, 255])[maps], [values, values])


def _coloured(path: Path, first: int, second: int) -> Path:
    """A red square in one corner, a blue one in the other, with a palette of this picture's own."""
    colours = np.zeros((40, 40, 3), dtype=np.uint8)
    colours[_square(0, first)] = (220, 20, 60)
    colours[_square(40 - second, second)] = (0, 128, 255)
    Image.fromarray(colours).quantize(3).save(path)
    return path


def test_colour_palettes_chosen_for_each_picture_are_refused(tmp_path):
    sizes = [(6, 14), (30, 8), (14, 0), (0, 30), (4, 4)]
    differ = [_coloured(tmp_path / f"{k}.png", *pair) for k, pair in enumerate(sizes)]
    with pytest.raises(InputError, match=r"\d\.png: palette gives index \d .* in \d\.png"):
        _maps(*differ)
    alike = [_coloured(tmp_path / f"b{k}.png", 10 + k, 14) for k in range(2)]
    with pytest.raises(InputError, match=r"b0\.png: .*\(0, 0, 0\), but background is 0.*save"):
        _maps(*alike)  # both have black last
    full = [_coloured(tmp_path / "full.png", 40, 0), _coloured(tmp_path / "empty.png", 0, 0)]
    with pytest.raises(InputError, match=r"empty\.png: .* but \(220, 20, 60\) in full\.png"):
        _maps(*full)  # each has one colour, at 0


def _voc_palette() -> list[int]:
    """The first 64 colours of Pascal VOC: bits 0, 1, 2 of an index are worth 128, 3, 4, 5 64."""
    return [
        128 * (index >> channel & 1) + 64 * (index >> (channel + 3) & 1)
        for index in range(64)
        for channel in range(3)
    ]


def _voc(path: Path, *classes: int) -> tuple[Path, np.ndarray]:
    values = np.zeros((40, 40), dtype=np.uint8)
    for k, index in enumerate(classes):
        values[12 * k + 2 : 12 * k + 12, 5:30] = index
    picture = Image.fromarray(values)
    picture.putpalette(_voc_palette())
    picture.save(path)
    return path, values


def test_the_fixed_palette_of_voc_gives_its_indices_whichever_classes_occur(tmp_path):
    # 7 is grey: (128, 128, 128)
    assert _voc_palette()[3 * 7 : 3 * 7 + 3] == [128, 128, 128]
    assert _voc_palette()[3 * 15 : 3 * 15 + 3] == [192, 128, 128]
    occurring = [(), (7,), (1, 15), (7, 20), (15,)]
    found = [_voc(tmp_path / f"{k}.png", *some) for k, some in enumerate(occurring)]
    maps, classes = _maps(*(path for path, _ in found), size_px=40)
    assert classes == ("1", "7", "15", "20")
    np.testing.assert_array_equal(
        np.array([0, 1, 7, 15, 20])[maps], [values for _, values in found]
    )


def test_a_class_of_a_grey_colour_alone_is_foreground(tmp_path):
    path, values = _voc(tmp_path / "car.png", 7)
    maps, classes = _maps(path, size_px=40)
    assert classes == ("foreground",)
    np.testing.assert_array_equal(maps[0], values == 7)


def test_indices_count_where_the_palette_is_black_throughout(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 0]], dtype=np.uint8))
    picture.putpalette([0] * 9)
    picture.save(tmp_path / "a.png")
    maps, classes = _maps(tmp_path / "a.png")
    assert classes == ("1", "2")
    np.testing.assert_array_equal(maps[0], [[0, 1], [2, 0]])


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
