"""Benchmark tables put together by hand."""

from lvmmed.evaluation.benchmark_table import (
    BenchmarkTable,
    CellScore,
    Column,
    Cost,
    Encoder,
    MissingCell,
    PairedComparison,
    RateChoice,
    RateTrial,
)

NASTY = 'a|b_c & 50% <i>$x$</i> {#} ~^\\ "q", *d*\nend'
"""A name that every format must escape."""

ACCURACY = Column(task="breast", split="test", metric="linear.accuracy")
KAPPA = Column(task="retina", split="test", metric="quadratic_kappa")
SHIFTED = Column(task="breast", split="other", metric="linear.accuracy", is_shifted=True)


def make_score(encoder, column, mean, *, ci95=None, per_seed=None, **keywords):
    """A cell with the fields that do not matter filled in."""
    return CellScore(
        encoder=encoder,
        column=column,
        mean=mean,
        ci95=ci95,
        per_seed=(mean,) if per_seed is None else per_seed,
        **{
            "num_cases": 1200,
            "num_groups": 300,
            "unit": "patient",
            "data_fingerprint": f"0123456789abcdef {column.task}",
            "commands": (f"lvmmed probe --weights {encoder.method}",),
            "wall_s": 30.0,
            **keywords,
        },
    )


def make_table(encoders, columns, cells, **keywords):
    """A table whose other planned cells are missing."""
    filled = {(cell.encoder, cell.column) for cell in cells}
    missing = tuple(
        MissingCell(encoder=encoder, column=column, reason="out of memory")
        for encoder in encoders
        for column in columns
        if (encoder, column) not in filled
    )
    return BenchmarkTable(
        name=keywords.pop("name", "trial"),
        encoders=tuple(encoders),
        columns=tuple(columns),
        cells=tuple(cells),
        missing=missing,
        num_resamples=2000,
        num_flips=20_000,
        **keywords,
    )


A, B, C = (Encoder(method=name, initialisation="scratch") for name in ("lvm-med", "dino", NASTY))
D = Encoder(method="lvm-med", initialisation="imagenet")


def make_small_table():
    """Four encoders, three columns, one missing and one undefined cell, two comparisons."""
    cells = [
        make_score(
            A, ACCURACY, 0.8314, ci95=(0.802, 0.8591), per_seed=(0.82, 0.8428), is_best=True
        ),
        make_score(B, ACCURACY, 0.82, ci95=(0.79, 0.85), p_against_best=0.4, per_seed=(0.81, 0.83)),
        make_score(C, ACCURACY, 0.5, ci95=(0.45, 0.55), p_against_best=0.0003),
        make_score(D, ACCURACY, 0.9),
        make_score(A, KAPPA, 0.5006, ci95=(-0.1, 0.9)),
        make_score(B, KAPPA, None),
        make_score(D, KAPPA, 0.25),
        *(make_score(e, SHIFTED, mean) for e, mean in ((A, 0.7), (B, 0.6), (C, 0.4), (D, 0.71))),
    ]
    comparisons = [
        PairedComparison(
            column=ACCURACY,
            reference=A,
            other=other,
            difference=difference,
            ci95=ci95,
            p_value=p,
            p_holm=p_holm,
            over_seeds=over_seeds,
        )
        for other, difference, ci95, p, p_holm, over_seeds in (
            (B, 0.0114, (-0.01, 0.0328), 0.4, 0.4, (-0.02, 0.04)),
            (C, 0.3314, (0.29, 0.37), 0.00005, 0.0001, (0.28, 0.38)),
        )
    ]
    costs = [
        Cost(
            encoder=A,
            wall_s=(3600.0, 7200.0),
            device="cpu",
            images_seen=64_000,
            commands=("lvmmed pretrain --recipe lvm-med", "lvmmed pretrain --set train.seed=1"),
            learning_rate=3e-4,
            warnings=(f"seed 1: step 9: {NASTY}",),
        )
    ]
    return make_table(
        (A, B, C, D),
        (ACCURACY, KAPPA, SHIFTED),
        cells,
        reference="lvm-med",
        comparisons=tuple(comparisons),
        costs=tuple(costs),
        rate_choices=(
            RateChoice(
                encoder=A,
                seed=0,
                own=1e-3,
                trials=(
                    RateTrial(learning_rate=3e-4, val_score=0.9),
                    RateTrial(learning_rate=1e-3, val_score=None, note=NASTY),
                ),
                chosen=3e-4,
            ),
        ),
    )
