import numpy as np
import pytest
from PIL import Image

from lvmmed.data.sheet import GAP_PX, contact_sheet, store_sheet
from lvmmed.data.store import StoreWriter
from lvmmed.types import ImageRecord, InputError


def flat(value, shape=(40, 40)):
    return np.full(shape, value, np.uint8)


def test_tiles_stand_in_rows_in_their_order(tmp_path):
    images = [flat(50), flat(100), flat(150), np.full((40, 40, 3), (250, 0, 0), np.uint8)]
    contact_sheet(images, tmp_path / "a.png", columns=3, tile_px=40)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    step = 40 + GAP_PX
    assert sheet.shape == (2 * step + GAP_PX, 3 * step + GAP_PX, 3)
    middle = [sheet[24, 24 + i * step].tolist() for i in range(3)]
    assert middle == [[50] * 3, [100] * 3, [150] * 3]
    assert sheet[24 + step, 24].tolist() == [250, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_tile_keeps_the_aspect_of_its_image(tmp_path):
    contact_sheet([flat(255, (20, 40))], tmp_path / "a.png", tile_px=80)
    bright = np.asarray(Image.open(tmp_path / "a.png").convert("L")) > 200
    assert (bright.any(axis=1).sum(), bright.any(axis=0).sum()) == (40, 80)


def test_captions_are_written_below_and_kept_within_the_tile(tmp_path):
    contact_sheet([flat(0), flat(0)], tmp_path / "a.png", tile_px=64, captions=["W" * 99, ""])
    sheet = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    ink = np.argwhere(sheet > 120)
    assert len(ink) > 20
    assert ink[:, 0].min() > 64
    assert ink[:, 1].max() <= GAP_PX + 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": []}, "got no image"),
        ({"columns": 0}, "columns=0, tile_px=128; need 1 and 16"),
        ({"tile_px": 4}, "columns=8, tile_px=4; need 1 and 16"),
        ({"captions": ["a", "b"]}, "2 captions for 1 images"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        contact_sheet(**{"images": [flat(1)], "out": tmp_path / "a.png", **arguments})


def test_the_sheet_of_a_store_shows_every_data_set(tmp_path):
    writer = StoreWriter(tmp_path / "s", size=16)
    for number in range(20):
        name = "large" if number < 19 else "small"
        record = ImageRecord(pixels=flat(30 if number < 19 else 250), source="x")
        writer.add(record, dataset=name)
    store_sheet(writer.finish(), tmp_path / "a.png", num_images=4)
    sheet = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert (sheet == 250).sum() >= 128 * 128 * 0.9
    assert (sheet == 30).sum() >= 128 * 128 * 2 * 0.9
