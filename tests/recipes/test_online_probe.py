"""The kNN probe during training: its figure by scikit-learn, and that tests are never read."""

import json

import numpy as np
import pytest
from reference.striped_images import write_striped_images
from reference.tiny_store import write_tiny_store
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from lvmmed.data.labelled import load_square_images, read_labelled
from lvmmed.models.backbones import build_backbone
from lvmmed.probes import extract_features
from lvmmed.recipes.online_probe import OnlineProbe
from lvmmed.recipes.pretraining import pretrain
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.types import InputError

FIELDS = [
    "model.backbone=test_efficientnet",
    "views.size=32",
    "train.batch_size=8",
    "train.steps=2",
    "log.every=1",
    "log.samples=0",
    "method.projector_hidden_width=32",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "data"
    write_striped_images(folder, num_train=12, num_val=8)
    return folder


def test_the_figure_is_that_of_scikit_learn(data):
    backbone = build_backbone("test_efficientnet", size_px=32)
    labelled = read_labelled(data)
    features, labels = {}, {}
    for split in ("train", "val"):
        items = labelled.split(split)
        features[split] = extract_features(backbone, load_square_images(items, size_px=32))
        labels[split] = np.array([item.label for item in items])
    judge = KNeighborsClassifier(
        10, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    predicted = judge.fit(features["train"], labels["train"]).predict(features["val"])
    found = OnlineProbe(data, size_px=32).measure(backbone, device="cpu")
    expected = balanced_accuracy_score(labels["val"], predicted)
    assert found == {"knn_val_balanced_accuracy": pytest.approx(expected)}


def test_rows_have_the_figure_and_test_images_are_never_read(data, tmp_path):
    for path in data.glob("test*/*.png"):
        path.write_bytes(b"no picture")
    write_tiny_store(tmp_path / "store")
    fields = [*FIELDS, f"log.probe_data={data}"]
    config = resolve_config("simclr", fields, store=str(tmp_path / "store"))
    result = pretrain(config, tmp_path / "run")
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["knn_val_balanced_accuracy"] <= 1 for row in rows)
    assert "knn_val_balanced_accuracy" in result.figures


def test_labelled_images_that_are_missing_are_refused_before_the_run_begins(tmp_path):
    write_tiny_store(tmp_path / "store")
    fields = [*FIELDS, f"log.probe_data={tmp_path / 'nowhere'}"]
    config = resolve_config("simclr", fields, store=str(tmp_path / "store"))
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
