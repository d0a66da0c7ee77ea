"""A fine-tuned classifier on disk: encoder and card, head.safetensors and classifier.json.

The encoder can be loaded on its own, as that of any run folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lvmmed.data.labelled_rows import LIST_SUFFIXES
from lvmmed.engine.environment import code_version
from lvmmed.engine.run_folder import RunFolder
from lvmmed.files import file_sha256, write_atomically
from lvmmed.models.cards import lineage
from lvmmed.models.weights import load_encoder, save_encoder
from lvmmed.recipes.labelled_images import LabelledImages
from lvmmed.tasks.classification import Classifier
from lvmmed.types import FORMAT_VERSION, Card, InputError

HEAD_NAME = "head.safetensors"
CLASSIFIER_NAME = "classifier.json"
_FIELDS = {
    "format_version": int, "classes": list, "input_size": int,
    "encoder_sha256": str, "head_sha256": str,
}  # fmt: skip
"""What is read of `CLASSIFIER_NAME`, and its type."""


@dataclass(frozen=True, kw_only=True)
class LoadedClassifier:
    """A fine-tuned model ready to predict.

    Attributes:
        model: on the CPU, in evaluation mode.
        classes: names of its outputs.
        size_px: side of the square images it takes.
        card: of its encoder.
    """

    model: Classifier
    classes: tuple[str, ...]
    size_px: int
    card: Card


def save_classifier(
    folder: RunFolder,
    model: Classifier,
    images: LabelledImages,
    *,
    start: Card,
    step: int,
    seed: int,
) -> None:
    """Write a fine-tuned model: the encoder as any other, the head and the classes beside it.

    Args:
        folder: run folder to write into.
        model: on the CPU.
        images: what it was trained on.
        start: card of the encoder that training started from.
        step: training step of the weights.
        seed: of the training.
    """
    name = _data_name(images)
    num_train = len(images.images["train"])
    card = Card(
        backbone=model.backbone.name,
        width=model.backbone.width,
        input_size=images.size_px,
        mean=model.backbone.mean,
        std=model.backbone.std,
        intensity_policies=dict(images.policies),
        datasets={**start.datasets, name: {"licence": "unknown", "num_images": num_train}},
        recipe="finetune-classification",
        method="supervised",
        step=step,
        code_version=code_version(),
        derived_from=lineage(start),
    )
    card = save_encoder(model.backbone, folder.path, card)
    head = {name: value.cpu().contiguous() for name, value in model.head.state_dict().items()}
    path = folder.path / HEAD_NAME
    write_atomically(path, lambda temporary: save_file(head, temporary))
    values = {
        "format_version": FORMAT_VERSION,
        "task": "classification",
        "classes": list(images.labelled.classes),
        "input_size": images.size_px,
        "seed": seed,
        "selected_on": "val",
        "data_fingerprint": images.labelled.fingerprint,
        "encoder_sha256": card.sha256,
        "head_sha256": file_sha256(path),
    }
    folder.write_json(CLASSIFIER_NAME, values)


def _data_name(images: LabelledImages) -> str:
    source = images.source.resolve()
    is_list = source.suffix.lower() in LIST_SUFFIXES and not source.is_dir()
    return source.parent.name if is_list else source.name


def load_classifier(run_folder: Path) -> LoadedClassifier:
    """Load the model of a fine-tuning run; nothing in the files is executed.

    Args:
        run_folder: what `finetune_classification` wrote.

    Returns:
        The model, which predicts with `predict_probabilities`.

    Raises:
        InputError: no such files, damaged ones, a newer format, or a head that is not the one of
            this run.
    """
    path, head_path = run_folder / CLASSIFIER_NAME, run_folder / HEAD_NAME
    if not path.is_file() or not head_path.is_file():
        raise InputError(
            f"{run_folder}: no {CLASSIFIER_NAME} and {HEAD_NAME} in it; "
            "give the folder of a finetune classification run"
        )
    values = RunFolder(run_folder).read_json(CLASSIFIER_NAME)
    _check_fields(path, values)
    loaded = load_encoder(str(run_folder))
    if file_sha256(head_path) != values["head_sha256"] or (
        loaded.card.sha256 != values["encoder_sha256"]
    ):
        raise InputError(
            f"{run_folder}: head and encoder are not of one run; copy the whole folder again"
        )
    classes = tuple(values["classes"])
    model = Classifier(
        loaded.backbone, num_classes=len(classes), generator=torch.Generator().manual_seed(0)
    )
    model.head.load_state_dict(load_file(head_path))
    model.eval()
    return LoadedClassifier(
        model=model, classes=classes, size_px=values["input_size"], card=loaded.card
    )


def _check_fields(path: Path, values: Mapping[str, Any]) -> None:
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(values.get(name), kind)]
    if "format_version" not in wrong and values["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {values['format_version']}, this version of lvmmed reads up "
            f"to {FORMAT_VERSION}; upgrade lvmmed"
        )
    if wrong:
        raise InputError(
            f"{path}: {', '.join(wrong)} missing or of the wrong type; copy the whole folder again"
        )
