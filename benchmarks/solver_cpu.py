"""Gap of the matching solver against its time, over restarts and iterations.

Problems are those of a training step: cosines of synthetic embeddings of two views with a share of
signal (0: untrained, 2: aligned), Gumbel noise and scaled edges. The gap is the distance from the
best objective known (a long run and everything tried here), in percent of its lead over random
matchings. The time is the median CPU time of repeated calls on a batch of eight graphs; with one
thread that is the wall time on an idle core.

    python benchmarks/solver_cpu.py --nodes 16
    python benchmarks/solver_cpu.py --nodes 32 --graphs 8 --out
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lvmmed.matching.affinity import edge_affinity, global_affinity
from lvmmed.matching.graph import knn_graph
from lvmmed.matching.imle import draw_gumbel
from lvmmed.matching.solver import objective, solve

RESULTS = Path(__file__).parent / "results"
SIGNALS, NOISES, EDGE_WEIGHTS = (0.0, 0.6, 0.8, 1.2, 2.0), (0.05, 0.2, 1.0), (0.2, 1.0)
CELLS = tuple(itertools.product(SIGNALS, NOISES, EDGE_WEIGHTS))
EFFORTS = ((4, 16), (8, 16), (8, 30), (16, 30), (16, 60), (32, 60), (32, 100))
TIMED_GRAPHS = 8

Instance = tuple[Tensor, Tensor, Tensor, Tensor]


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
    return torch.stack([objective(*instance, one.expand(num_graphs, -1)) for one in draws]).mean(0)


def time_ms(instance: Instance, restarts: int, iterations: int, repeats: int) -> float:
    """Median CPU milliseconds of one call on `TIMED_GRAPHS` graphs."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        solve(*instance, restarts=restarts, iterations=iterations)
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[1:])


def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    """Gap and time of every effort over all cells of signal, noise and edge weight."""
    instances = [make_instance(args.graphs, args.nodes, *cell) for cell in CELLS]
    found = {
        effort: [
            solve(*one, restarts=effort[0], iterations=effort[1]).objective for one in instances
        ]
        for effort in EFFORTS
    }
    gaps: dict[tuple[int, int], list[Tensor]] = {effort: [] for effort in EFFORTS}
    for at, instance in enumerate(instances):
        generator = torch.Generator().manual_seed(2)
        best = solve(
            *instance,
            restarts=args.long[0],
            iterations=args.long[1],
            generator=generator,
        ).objective
        best = torch.stack([best, *(values[at] for values in found.values())]).amax(0)
        lead = best - mean_of_random(instance)
        for effort in EFFORTS:
            gaps[effort].append(100 * (best - found[effort][at]) / lead)
    timed = make_instance(TIMED_GRAPHS, args.nodes, *CELLS[0])
    rows = []
    for effort in EFFORTS:
        all_gaps = torch.stack(gaps[effort])  # [cells, graphs]
        rows.append(
            {
                "restarts": effort[0],
                "iterations": effort[1],
                "gap_mean_percent": all_gaps.mean().item(),
                "gap_max_percent": all_gaps.max().item(),
                "gap_worst_cell_percent": all_gaps.mean(1).max().item(),
                "share_best": (all_gaps < 1e-3).float().mean().item(),
                "ms_eight_graphs": time_ms(timed, *effort, args.repeats),
                "gap_mean_by_cell": dict(
                    zip(map(str, CELLS), all_gaps.mean(1).tolist(), strict=True)
                ),
            }
        )
    return rows


def main() -> None:
    """Print the table and, with --out, keep it with date and machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--graphs", type=int, default=24, help="graphs a cell")
    parser.add_argument("--long", type=int, nargs=2, default=(48, 300), help="long run: R, T")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", nargs="?", const="", help="file, or the folder of results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args)
    print(
        f"N = {args.nodes}, {args.graphs} graphs in each of {len(CELLS)} cells; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print("| restarts | iterations | gap mean % | worst cell % | max % | = best | ms, 8 graphs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['restarts']} | {row['iterations']} | {row['gap_mean_percent']:.3f} | "
            f"{row['gap_worst_cell_percent']:.2f} | {row['gap_max_percent']:.1f} | "
            f"{row['share_best']:.3f} | {row['ms_eight_graphs']:.1f} |"
        )
    if args.out is not None:
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        path = Path(args.out or RESULTS / f"{date}-solver-cpu-n{args.nodes}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"torch": torch.__version__, "cpu": platform.processor(), "load": os.getloadavg()}
        path.write_text(json.dumps({"date": date, "machine": machine, "rows": rows}, indent=1))
        print(f"written to {path}")


if __name__ == "__main__":
    main()
