"""Made-up results of a benchmark: classifiers and segmenters of known skill on shared cases."""

import numpy as np

from lvmmed.evaluation.benchmark_scoring import BenchmarkPlan, MeasuredCell
from lvmmed.evaluation.benchmark_table import Column, Cost, Encoder
from lvmmed.evaluation.case_values import CaseValues
from lvmmed.evaluation.cases import Predictions
from lvmmed.evaluation.scored_cases import score_case_values, score_predictions


def make_predictions(
    skill, *, seed=0, num_seeds=1, num_cases=60, num_classes=3, cases=0, split="test"
):
    """Predictions of a classifier; those with one `cases` number share cases and their hardness."""
    shared = np.random.default_rng(1000 + cases)
    labels = shared.integers(num_classes, size=num_cases)
    hardness = shared.normal(size=(num_cases, num_classes))
    own = np.random.default_rng(seed)
    noise = own.normal(size=(num_cases, num_classes))
    noise = 0.8 * noise + 0.35 * own.normal(size=(num_seeds, num_cases, num_classes))
    logits = skill * np.eye(num_classes)[labels] + hardness + noise
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    return Predictions(
        model="linear",
        split=split,
        classes=tuple(f"class {i}" for i in range(num_classes)),
        files=tuple(f"image-{i:04d}.png" for i in range(num_cases)),
        groups=tuple(f"patient-{i // 2}" for i in range(num_cases)),
        labels=labels,
        seeds=tuple(range(num_seeds)),
        probabilities=(odds / odds.sum(axis=2, keepdims=True)).astype(np.float32),
    )


def make_case_values(
    skill, *, seed=0, num_seeds=1, num_cases=40, num_classes=2, cases=0, split="test"
):
    """Dice of a segmenter around `skill`, with shared hardness of cases."""
    shared = np.random.default_rng(2000 + cases)
    hardness = shared.gamma(2.0, 0.06, size=(num_cases, num_classes))
    own = np.random.default_rng(seed)
    noise = 0.03 * own.normal(size=(num_cases, num_classes))
    noise = noise + 0.015 * own.normal(size=(num_seeds, num_cases, num_classes))
    return CaseValues(
        metric="dice",
        model="finetuned",
        split=split,
        classes=tuple(f"organ {i}" for i in range(num_classes)),
        files=tuple(f"scan-{i:03d}.nii.gz" for i in range(num_cases)),
        groups=tuple(f"patient-{i}" for i in range(num_cases)),
        seeds=tuple(range(num_seeds)),
        values=np.clip(skill - hardness + noise, 0.0, 1.0),
    )


def make_cell(encoder, column, cases, *, fingerprint=None, unit="patient"):
    """A cell as the engine hands it over."""
    return MeasuredCell(
        encoder=encoder,
        column=column,
        cases=cases,
        unit=unit,
        data_fingerprint=fingerprint or f"fingerprint of {column.task}",
        commands=(f"lvmmed probe --weights {encoder.method} --data {column.task}",),
        wall_s=12.5,
    )


def score_cell(column, skill, *, seed, num_seeds, cases):
    """Scored cases of a made-up method, by the column's metric."""
    if column.metric == "dice":
        values = make_case_values(
            0.55 + 0.2 * skill, seed=seed, num_seeds=num_seeds, cases=cases, split=column.split
        )
        return score_case_values([values], by_seed=True)
    table = make_predictions(
        1.6 * skill, seed=seed, num_seeds=num_seeds, num_cases=160, cases=cases, split=column.split
    )
    return score_predictions([table], column.metric.rpartition(".")[2], by_seed=True)


SKILLS = {
    "lvm-med": 1.5,
    "simclr": 1.3,
    "moco-v3": 1.32,
    "byol": 1.28,
    "dino": 1.42,
    "vicreg": 1.22,
    "vicregl": 1.3,
    "barlow-twins": 1.2,
    "swav": 1.25,
    "mae": 1.1,
    "random weights": 0.6,
}
"""Method -> skill of the large made-up benchmark."""

TASKS = {
    "brain-mri-4": "linear.balanced_accuracy",
    "breast-ultrasound": "linear.balanced_accuracy",
    "chest-x-ray-pneumonia": "linear.balanced_accuracy",
    "retina-grading": "linear.quadratic_kappa",
    "polyp-segmentation": "dice",
}
"""Task -> its score."""


def make_columns(*, shifted=("chest-x-ray-pneumonia", "polyp-segmentation")):
    """In-distribution columns of every task, an AUROC beside the first, and shifted ones."""
    columns = [Column(task=task, split="test", metric=metric) for task, metric in TASKS.items()]
    second = Column(task="brain-mri-4", split="test", metric="linear.auroc", is_primary=False)
    columns.insert(1, second)
    columns += [
        Column(task=task, split="test_shifted", metric=TASKS[task], is_shifted=True)
        for task in shifted
    ]
    return tuple(columns)


def make_benchmark(
    *, methods=tuple(SKILLS), initialisations=("scratch", "imagenet"), num_seeds=5, leave_out=()
):
    """Plan, cells and costs of a benchmark; `leave_out` holds (encoder number, column number)."""
    encoders = tuple(Encoder(method=m, initialisation=i) for i in initialisations for m in methods)
    columns = make_columns()
    plan = BenchmarkPlan(
        name="made-up",
        encoders=encoders,
        columns=columns,
        reference=methods[0] if methods else None,
    )
    cells = []
    for row, encoder in enumerate(encoders):
        bonus = 0.2 * (encoder.initialisation == "imagenet")
        for place, column in enumerate(columns):
            if (row, place) in leave_out:
                continue
            task = list(TASKS).index(column.task)
            seeds = 1 if encoder.method == "random weights" else num_seeds
            cases = score_cell(
                column,
                SKILLS[encoder.method] + bonus - 0.25 * column.is_shifted,
                seed=100 * row + task + 50 * column.is_shifted,
                num_seeds=seeds,
                cases=task + 10 * column.is_shifted,
            )
            cells.append(make_cell(encoder, column, cases))
    costs = [
        Cost(
            encoder=encoder,
            wall_s=tuple(3600.0 * (1 + row / 7) + 60 * seed for seed in range(num_seeds)),
            device="NVIDIA H100 80GB HBM3",
            images_seen=2_560_000,
            commands=(f"lvmmed pretrain --recipe {encoder.method} --out runs/{encoder.method}",),
        )
        for row, encoder in enumerate(encoders)
        if encoder.method != "random weights"
    ]
    return plan, cells, costs
