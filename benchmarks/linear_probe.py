"""Time of the linear probe's fits on one thread against all threads of the machine, by size.

A fit is a few hundred products of the features with a few columns. On small problems threads cost
more than they save, and far more where other work shares the processor, as OpenBLAS waits in a
spin; below `probes.classification.ONE_THREAD_SIZE` numbers the probe takes one. Floor: the bytes of
the features, read twice a step of the solver, over the bandwidth of a copy.

    python benchmarks/linear_probe.py OUT.json [--repeats 3]
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

SIZES = (
    (300, 512, 4),
    (1500, 512, 4),
    (6000, 512, 4),
    (1500, 2048, 4),
    (6000, 2048, 4),
    (12000, 2048, 4),
)
"""Cases, width of the features and classes."""

NUM_STEPS = 50
"""Steps of the solver, always as many: the tolerance is 0."""


def make_cases(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes whose means differ a little, and the classes."""
    num_cases, width, num_classes = size
    generator = np.random.default_rng(0)
    labels = np.arange(num_cases) % num_classes
    means = generator.normal(size=(num_classes, width))
    return generator.normal(size=(num_cases, width)) + 0.1 * means[labels], labels


def fit_ms(features: np.ndarray, labels: np.ndarray, threads: int | None) -> float:
    """Milliseconds of one fit; None = all threads."""
    model = LogisticRegression(C=0.01, max_iter=NUM_STEPS, tol=0.0)
    start = time.perf_counter()
    with threadpool_limits(limits=threads):
        model.fit(features, labels)
    return 1e3 * (time.perf_counter() - start)


def bytes_per_ms() -> float:
    """Bandwidth of a copy, the best of some."""
    source = np.ones(16 << 20)
    target, times = np.empty_like(source), []
    for _ in range(10):
        start = time.perf_counter()
        target[:] = source
        times.append(1e3 * (time.perf_counter() - start))
    return 2 * source.nbytes / min(times)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, in turn, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(words)
    bandwidth, rows = bytes_per_ms(), []
    for size in SIZES:
        features, labels = make_cases(size)
        times: dict[int | None, list[float]] = {1: [], None: []}
        for repeat in range(arguments.repeats + 1):
            for threads, spent in times.items():
                took = fit_ms(features, labels, threads)
                if repeat:  # the first warms up
                    spent.append(took)
        one, every = (statistics.median(spent) for spent in times.values())
        row: dict[str, Any] = dict(zip(("cases", "width", "classes"), size, strict=True))
        row |= {"one_thread_ms": one, "all_threads_ms": every, "ratio": every / one}
        row["floor_ms"] = 2 * NUM_STEPS * features.nbytes / bandwidth
        rows.append(row)
        print({name: round(value, 2) for name, value in row.items()})
    pools = [{**pool, "filepath": Path(pool["filepath"]).name} for pool in threadpool_info()]
    found = {"rows": rows, "pools": pools, **provenance()}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
