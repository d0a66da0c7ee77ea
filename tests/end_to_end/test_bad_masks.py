"""Bad input to `lvmmed probe --task segmentation`: one clear line, exit code 2, nothing written."""

import numpy as np
import pytest
from PIL import Image
from reference.masked_images import write_masked_images

from lvmmed.cli import run_command

PROBE = ("probe", "--weights", "random", "--backbone", "test_vit", "--size", "64")
SEGMENT = (*PROBE, "--task", "segmentation")


@pytest.fixture
def data(tmp_path):
    return write_masked_images(tmp_path / "set", num_train=4, num_other=2)


def _refused(words, data, tmp_path, capsys, *, says):
    capsys.readouterr()
    assert run_command([*words, "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    for text in says:
        assert text in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_task_gets_a_hint(data, tmp_path, capsys):
    words = (*PROBE, "--task", "segmentatoin")
    _refused(words, data, tmp_path, capsys, says=["segmentatoin", "did you mean 'segmentation'"])


@pytest.mark.parametrize("kind", ["list", "folders"])
def test_masks_without_labels_point_to_the_task(data, tmp_path, capsys, kind):
    if kind == "folders":
        (data / "index.csv").unlink()
    _refused(PROBE, data, tmp_path, capsys, says=[str(data), "masks", "--task segmentation"])


def test_labels_without_masks_point_to_the_other_task(data, tmp_path, capsys):
    (data / "index.csv").write_text("file,label\nimages/train_0.png,x\n")
    _refused(SEGMENT, data, tmp_path, capsys, says=["'mask'", "--task classification"])


def test_a_missing_mask_is_named(data, tmp_path, capsys):
    (data / "masks" / "val_0.png").unlink()
    _refused(SEGMENT, data, tmp_path, capsys, says=["1 of 10 masks", "val_0.png"])


def test_a_mask_of_another_size_is_named_and_may_be_stretched(data, tmp_path, capsys):
    small = np.zeros((32, 32), np.uint8)
    small[4:9, 4:9] = 255
    Image.fromarray(small).save(data / "masks" / "train_1.png")
    says = ["train_1.png", "32 x 32", "64 x 64", "stretch_masks=true"]
    _refused(SEGMENT, data, tmp_path, capsys, says=says)
    words = (*SEGMENT, "--set", "stretch_masks=true", "--set", "seeds=[0]")
    assert run_command([*words, "--data", str(data), "--out", str(tmp_path / "run")]) == 0


def test_masks_without_any_foreground_are_refused(data, tmp_path, capsys):
    for path in (data / "masks").glob("train_*.png"):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
    _refused(SEGMENT, data, tmp_path, capsys, says=["no mask of train has foreground"])


def test_a_broken_mask_is_named(data, tmp_path, capsys):
    (data / "masks" / "test_1.png").write_bytes(b"broken")
    _refused(SEGMENT, data, tmp_path, capsys, says=["test_1.png"])


def test_an_empty_list_is_refused(data, tmp_path, capsys):
    (data / "index.csv").write_text("file,mask,split\n")
    _refused(SEGMENT, data, tmp_path, capsys, says=["no images with masks"])


def test_no_test_split_is_named(data, tmp_path, capsys):
    rows = ["file,mask,split"]
    rows += [f"images/{name}.png,masks/{name}.png,train" for name in ("train_0", "train_1")]
    (data / "index.csv").write_text("\n".join(rows) + "\n")
    _refused(SEGMENT, data, tmp_path, capsys, says=["split"])
