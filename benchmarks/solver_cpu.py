"""Gap of the matching solver against its time, over restarts and iterations.

Problems are those of a training step: cosines of synthetic embeddings of two views with a share of
signal (0: untrained, 2: aligned), Gumbel noise and scaled edges. The gap is the distance from the
best objective known (a long run with random numbers of its own, and everything tried here), in
percent of its lead over random matchings. The time is the median processor time of repeated calls
on a batch of eight graphs, all efforts in turn; with one thread that is the wall time on an idle
core.

    python benchmarks/solver_cpu.py                         # 16 and 32 nodes, some 12 minutes
    python benchmarks/solver_cpu.py --out                   # and keeps files and a picture
    python benchmarks/solver_cpu.py --nodes 16 --graphs 4   # a quick look
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lvmmed.matching.affinity import edge_affinity, global_affinity
from lvmmed.matching.graph import knn_graph
from lvmmed.matching.imle import draw_gumbel
from lvmmed.matching.solver import effort_for, objective, solve

RESULTS = Path(__file__).parent / "results"
SIGNALS, NOISES, EDGE_WEIGHTS = (0.0, 0.6, 0.8, 1.2, 2.0), (0.05, 0.2, 1.0), (0.2, 1.0)
CELLS = tuple(itertools.product(SIGNALS, NOISES, EDGE_WEIGHTS))
TRAINING_NOISE = 0.2
"""The targets are for noise up to this; 1 is the paper's."""
RESTARTS, ITERATIONS = (4, 8, 16, 32), (16, 30, 60, 120)
TRAINING = (4, 16)
LONG, LONG_SEED = (48, 1000), 2
GRAPHS = {16: 24, 32: 8}
TARGETS_PERCENT = {16: 0.1, 32: 1.0}
TIMED_GRAPHS = 8
SMALLEST_PERCENT = 1e-3
"""Gaps below this are drawn as this, and count as none."""

Instance = tuple[Tensor, Tensor, Tensor, Tensor]
Effort = tuple[int, int]
Gaps = dict[tuple[float, float, float], Tensor]
Row = dict[str, Any]


def make_instance(
    num_graphs: int, num_nodes: int, signal: float, noise: float, edge_weight: float
) -> Instance:
    """Affinities and graphs of two noisy views of the same identities."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shared, identity = draw(num_graphs, 1, 128), draw(num_graphs, num_nodes, 128)
    nodes, graphs = [], []
    for _ in range(2):
        view = F.normalize(shared + signal * identity + draw(num_graphs, num_nodes, 128), dim=-1)
        graph = knn_graph(view, min(5, num_nodes - 1))
        around = view[torch.arange(num_graphs).view(-1, 1, 1), graph].mean(2)
        nodes.append(F.normalize(view + around, dim=-1))
        graphs.append(graph)
    vertex = global_affinity(*nodes)
    edge = edge_weight * edge_affinity(*nodes, *graphs)
    vertex = vertex + noise * draw_gumbel(vertex.shape, generator=generator, device="cpu")
    edge = edge + noise * draw_gumbel(edge.shape, generator=generator, device="cpu")
    return vertex, edge, graphs[0], graphs[1]


def mean_of_random(instance: Instance, num_draws: int = 200) -> Tensor:
    """Mean objective of random matchings, one a graph."""
    num_graphs, num_nodes, _ = instance[0].shape
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randperm(num_nodes, generator=generator) for _ in range(num_draws)]
    draws = [one.to(instance[0].device).expand(num_graphs, -1) for one in draws]
    return torch.stack([objective(*instance, one) for one in draws]).mean(0)


def efforts_of(num_nodes: int) -> tuple[Effort, ...]:
    """All restarts with all iterations, and the default of `solve`."""
    return tuple(dict.fromkeys((*itertools.product(RESTARTS, ITERATIONS), effort_for(num_nodes))))


def time_all_ms(num_nodes: int, efforts: Iterable[Effort], repeats: int) -> dict[Effort, float]:
    """Median processor milliseconds of one call on `TIMED_GRAPHS` graphs, efforts in turn."""
    instance = make_instance(TIMED_GRAPHS, num_nodes, *CELLS[0])
    times: dict[Effort, list[float]] = {effort: [] for effort in efforts}
    for _ in range(repeats + 1):
        for (restarts, iterations), taken in times.items():
            start = time.process_time()
            solve(*instance, restarts=restarts, iterations=iterations)
            taken.append(1e3 * (time.process_time() - start))
    return {effort: statistics.median(taken[1:]) for effort, taken in times.items()}


def find_best(instance: Instance, found: Iterable[Tensor], long: Effort) -> dict[str, Tensor]:
    """Best objective known, mean of random matchings and objective of the identity, by graph."""
    num_graphs, num_nodes, _ = instance[0].shape
    generator = torch.Generator().manual_seed(LONG_SEED)
    by_long_run = solve(*instance, restarts=long[0], iterations=long[1], generator=generator)
    identity = torch.arange(num_nodes, device=instance[0].device).expand(num_graphs, -1)
    return {
        "best": torch.stack([by_long_run.objective, *found]).amax(0),
        "random": mean_of_random(instance),
        "identity": objective(*instance, identity),
    }


def gap_percent(found: Tensor, known: Mapping[str, Tensor]) -> Tensor:
    """Distance from the best objective known, in percent of its lead over random matchings."""
    return 100 * (known["best"] - found) / (known["best"] - known["random"])


def find_gaps(
    num_nodes: int, num_graphs: int, efforts: Iterable[Effort], long: Effort
) -> tuple[dict[Effort, Gaps], dict[str, dict[str, list[float]]]]:
    """Gap of every graph in percent, by effort and cell, and what it is measured against."""
    gaps: dict[Effort, Gaps] = {one: {} for one in efforts}
    known = {}
    for cell in CELLS:
        instance = make_instance(num_graphs, num_nodes, *cell)
        found = {
            one: solve(*instance, restarts=one[0], iterations=one[1]).objective for one in gaps
        }
        best = find_best(instance, found.values(), long)
        for effort in gaps:
            gaps[effort][cell] = gap_percent(found[effort], best)
        known[str(cell)] = {name: values.tolist() for name, values in best.items()}
    return gaps, known


def by_signal(gaps: Gaps, most_noise: float = TRAINING_NOISE) -> dict[str, float]:
    """Mean gap of each signal level over edge weights and noise up to so much."""
    return {
        str(signal): torch.cat(
            [gap for cell, gap in gaps.items() if cell[0] == signal and cell[1] <= most_noise]
        )
        .mean()
        .item()
        for signal in dict.fromkeys(cell[0] for cell in gaps)
    }


def measure(num_nodes: int, num_graphs: int, long: Effort, repeats: int) -> dict[str, Any]:
    """Gap and time of every effort over all cells, and the best objectives known."""
    efforts = efforts_of(num_nodes)
    gaps, known = find_gaps(num_nodes, num_graphs, efforts, long)
    times = time_all_ms(num_nodes, efforts, repeats)
    rows = []
    for effort in efforts:
        means = {str(cell): gap.mean().item() for cell, gap in gaps[effort].items()}
        all_gaps = torch.cat(list(gaps[effort].values()))
        signals = by_signal(gaps[effort])
        rows.append(
            {
                "restarts": effort[0],
                "iterations": effort[1],
                "is_training_default": effort == TRAINING,
                "is_solve_default": effort == effort_for(num_nodes),
                "ms_eight_graphs": times[effort],
                "gap_mean_percent": all_gaps.mean().item(),
                "gap_max_percent": all_gaps.max().item(),
                "gap_worst_cell_percent": max(means.values()),
                "share_best": (all_gaps < SMALLEST_PERCENT).float().mean().item(),
                "gap_mean_up_to_training_noise_percent": statistics.fmean(signals.values()),
                "gap_mean_by_signal_up_to_training_noise_percent": signals,
                "gap_mean_by_signal_percent": by_signal(gaps[effort], max(NOISES)),
                "gap_mean_by_cell_percent": means,
            }
        )
    return {"rows": rows, "objectives_by_cell": known}


def label_of(row: Row) -> str:
    """Restarts and iterations, and whose default they are."""
    marks = [name for name in ("training", "solve") if row[f"is_{name}_default"]]
    mark = f" ({' and '.join(marks)} default)" if marks else ""
    return f"{row['restarts']}, {row['iterations']}{mark}"


def print_tables(rows: list[Row]) -> None:
    """Print one table over all cells and one by signal for noise up to that of training."""
    print("| restarts, iterations | gap mean % | worst cell % | max % | = best | ms, 8 graphs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {label_of(row)} | {row['gap_mean_percent']:.3f} | "
            f"{row['gap_worst_cell_percent']:.2f} | {row['gap_max_percent']:.1f} | "
            f"{row['share_best']:.3f} | {row['ms_eight_graphs']:.1f} |"
        )
    print(f"\nMean gap % by signal, noise up to {TRAINING_NOISE:g}, both edge weights:\n")
    signals = list(rows[0]["gap_mean_by_signal_up_to_training_noise_percent"])
    print(f"| restarts, iterations | {' | '.join(signals)} |")
    print("| --- " * (len(signals) + 1) + "|")
    for row in rows:
        gaps = row["gap_mean_by_signal_up_to_training_noise_percent"].values()
        print(f"| {label_of(row)} | {' | '.join(f'{gap:.3f}' for gap in gaps)} |")


def draw(results: Mapping[int, list[Row]], path: Path) -> None:
    """Draw gap against time, one panel a size and one line a number of restarts."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(results), figsize=(5.2 * len(results), 4.2), squeeze=False, layout="constrained"
    )
    what = "gap_mean_up_to_training_noise_percent"
    for axes, (num_nodes, rows) in zip(panels[0], results.items(), strict=True):
        for restarts in dict.fromkeys(row["restarts"] for row in rows):
            line = [row for row in rows if row["restarts"] == restarts]
            axes.plot(
                [row["ms_eight_graphs"] for row in line],
                [max(row[what], SMALLEST_PERCENT) for row in line],
                marker="o",
                markersize=4,
                label=f"{restarts} restarts",
            )
        for name, marker in (("training", "s"), ("solve", "*")):
            for row in (row for row in rows if row[f"is_{name}_default"]):
                axes.plot(
                    row["ms_eight_graphs"],
                    max(row[what], SMALLEST_PERCENT),
                    marker,
                    color="black",
                    markersize=13,
                    fillstyle="none",
                    label=f"{name} default: {row['restarts']}, {row['iterations']}",
                )
        if num_nodes in TARGETS_PERCENT:
            axes.axhline(TARGETS_PERCENT[num_nodes], color="grey", linestyle="--", linewidth=1)
        axes.set(xscale="log", yscale="log", title=f"{num_nodes} nodes")
        axes.set(xlabel="processor ms, 8 graphs", ylabel="mean gap to the best known, %")
        axes.legend(fontsize=8)
    figure.suptitle(f"noise up to {TRAINING_NOISE:g}; dashed: the most that each signal may have")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Print the tables and, with --out, keep them with date and machine, and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=tuple(GRAPHS))
    parser.add_argument("--graphs", type=int, help=f"graphs a cell; without it {GRAPHS}, else 8")
    parser.add_argument("--long", type=int, nargs=2, default=LONG, help="long run: R, T")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", nargs="?", const=RESULTS, type=Path, help="folder of results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    for num_nodes in args.nodes:
        num_graphs = args.graphs or GRAPHS.get(num_nodes, 8)
        found = measure(num_nodes, num_graphs, tuple(args.long), args.repeats)
        load = os.getloadavg()
        print(
            f"\nN = {num_nodes}, {num_graphs} graphs in each of {len(CELLS)} cells, long run "
            f"{args.long[0]} x {args.long[1]}; load {load[0]:.1f}"
        )
        print_tables(found["rows"])
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            facts = {
                "date": date,
                "nodes": num_nodes,
                "machine": {
                    "torch": torch.__version__,
                    "cpu": platform.processor() or platform.machine(),
                    "threads": args.threads,
                    "load": load,
                },
                "graphs_a_cell": num_graphs,
                "long": args.long,
                **found,
            }
            path = args.out / f"{date}-solver-cpu-n{num_nodes}.json"
            path.write_text(json.dumps(facts, indent=1))
            print(f"written to {path}")
    if args.out is not None:
        kept = [
            json.loads(path.read_text()) for path in args.out.glob(f"{date}-solver-cpu-n*.json")
        ]
        results = {facts["nodes"]: facts["rows"] for facts in kept}
        draw(dict(sorted(results.items())), args.out / f"{date}-solver-cpu.png")


if __name__ == "__main__":
    main()
