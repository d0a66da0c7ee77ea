"""What the demonstration replaces, and what it leaves alone."""

import numpy as np
import pytest
from PIL import Image

from lvmmed.recipes import demo
from lvmmed.types import InputError


def write_demo(folder):
    """An earlier demonstration, with labelled images of the user in it."""
    for label in ("a", "b"):
        (folder / "mine" / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((8, 8), number, np.uint8)
            Image.fromarray(pixels).save(folder / "mine" / label / f"{number}.png")
    (folder / demo.MARKER).write_text("{}")
    return folder


def stop_after_clearing(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_pool", stop)


def test_data_within_the_folder_that_is_replaced_are_refused(tmp_path, monkeypatch):
    out = write_demo(tmp_path / "demo")
    stop_after_clearing(monkeypatch)
    before = sorted(out.rglob("*"))
    (tmp_path / "link").symlink_to(out)
    for folder in (out, tmp_path / "link"):
        with pytest.raises(InputError, match=r"--data: got .* lies in .* give another --out"):
            demo.run_demo(folder, data=out / "mine")
    assert sorted(out.rglob("*")) == before


def test_an_earlier_demonstration_is_replaced_behind_a_link_too(tmp_path, monkeypatch):
    out = write_demo(tmp_path / "demo")
    stop_after_clearing(monkeypatch)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "link")
    assert [path.name for path in out.iterdir()] == [demo.MARKER]
    assert (tmp_path / "link").is_symlink()
