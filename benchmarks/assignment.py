"""Time of linear assignments on the processor, with prices taken off first and without.

Cosines of two views of random images under the margin and noise of training, at three strengths of
what the views share. Both ways are timed in turn on one thread, and must find the same columns.
What the prices cost here is a column of its own: on a GPU, where they are used, that is other work.
The floor is a look at every score, N^2 reads.

    python benchmarks/assignment.py OUT.json [--sizes 128 256 512] [--graphs 8] [--repeats 5]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from torch import Tensor
from torch.nn import functional

from lvmmed.matching.assignment import assign, less_prices, prices

MARGIN, NOISE, WIDTH = 1.0, 0.05, 128
SIGNALS = (0.0, 1.0, 3.0)


def make_scores(num: int, size: int, signal: float, generator: torch.Generator) -> Tensor:
    """Cosines of centred vectors whose first view has `signal` times the noise of the second."""
    first, noise = torch.randn(2, num, size, WIDTH, generator=generator)
    views = [
        functional.normalize(rows - rows.mean(1, keepdim=True), dim=2)
        for rows in (first, signal * first + noise)
    ]
    uniform = torch.rand(num, size, size, generator=generator).clamp(1e-7, 1 - 1e-7)
    return views[0] @ views[1].mT - MARGIN * torch.eye(size) - NOISE * (-uniform.log()).log()


def milliseconds(work: Callable[[], Any]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def measure(size: int, signal: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: medians of milliseconds a graph."""
    scores = make_scores(arguments.graphs, size, signal, torch.Generator().manual_seed(0))
    left = less_prices(scores)
    if not torch.equal(assign(scores, with_prices=False), assign(left, with_prices=False)):
        raise SystemExit(f"{size} images, signal {signal}: prices changed the assignment")
    works = {
        "plain_ms": lambda: assign(scores, with_prices=False),
        "after_prices_ms": lambda: assign(left, with_prices=False),
        "prices_ms": lambda: prices(scores),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(arguments.repeats):
        for name, work in works.items():
            times[name].append(milliseconds(work) / arguments.graphs)
    row = {name: round(statistics.median(spent), 3) for name, spent in times.items()}
    return {
        "size": size,
        "signal": signal,
        **row,
        "ratio": round(row["plain_ms"] / row["after_prices_ms"], 2),
    }


def main() -> None:
    """Measure every size and signal, and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256, 512])
    parser.add_argument("--graphs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in arguments.sizes:
        for signal in SIGNALS:
            rows.append(measure(size, signal, arguments))
            print(rows[-1])
    text = json.dumps({**provenance(), "rows": rows}, indent=1)
    arguments.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
