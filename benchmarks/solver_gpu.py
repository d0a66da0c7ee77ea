"""The matching solver on an NVIDIA GPU: is the Triton kernel right, and how fast is each way.

First the kernel against the torch search, from the same starts and under the same tenures. On
affinities in steps of 1/64 all sums are exact, so both must end at the same permutations; on plain
ones rounding may part them, and the mean objective must agree to 1e-4. Then times of a whole solve
(torch and Triton search, each launched kernel by kernel and as a CUDA graph), and for the very same
solvers the gap to a long run in percent of the lead over random matchings, its mean over all cells
of `solver_cpu.py` and that of the worst cell; and times of the kernel alone. Beside them the most
that each way may take, and the floor: the table entries that the exchanges must read over the
measured bandwidth of the cache (or of the memory, where the tables are larger than the cache), and
one launch.

    python benchmarks/solver_gpu.py            # a few minutes; --quick checks and times one size

It ends with 0 when the kernel is right, 1 when it is not, 2 without an NVIDIA GPU.
"""

import argparse
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from solver_cpu import CELLS, LONG, find_best, gap_percent, make_instance
from solver_gpu_results import RESULTS, hash_sources
from torch import Tensor

from lvmmed.matching.cuda_graph import GraphedSolve
from lvmmed.matching.graph import Problem
from lvmmed.matching.search_choice import SWITCH, TOLERANCE, check_kernel
from lvmmed.matching.solver import Matching, draw_uniform, objectives, solve
from lvmmed.matching.starts import soft_starts
from lvmmed.matching.tabu import tabu_search
from lvmmed.matching.terms import DenseTerms
from lvmmed.matching.triton_search import NUM_WARPS, triton_tabu_search

CHECKED_NODES = (8, 10, 16, 24, 32)
CHECKED_CELLS = tuple(itertools.product((0.0, 0.8, 2.0), (0.05, 0.2, 1.0)))  # signal, noise
SIZES = ((16, 16), (32, 16), (100, 16))  # graphs, nodes
TARGETS_MS = {
    (16, 16): {"torch": 6.0, "triton": 1.5},
    (32, 16): {"torch": 1.0, "triton": 1.0},
    (100, 16): {"torch": 1.5, "triton": 1.5},
}
EFFORTS = ((4, 16), (8, 30), (16, 60), (32, 60))  # restarts, iterations
GAP_GRAPHS = 24  # of each cell
TIMED_CELL = (0.0, 0.05, 1.0)
WARPS = (1, 2, 4, 8)

Effort = tuple[int, int]
Solvers = Mapping[tuple[Effort, str], Callable[..., Matching]]


def make_problems(device: torch.device, num_graphs: int) -> Iterator[tuple[str, bool, Problem]]:
    """All cells and sizes, with and without padded nodes, exact and plain."""
    for num_nodes, (signal, noise) in itertools.product(CHECKED_NODES, CHECKED_CELLS):
        given = [part.to(device) for part in make_instance(num_graphs, num_nodes, signal, noise, 1)]
        for is_padded, is_exact in itertools.product((False, True), (False, True)):
            problem = Problem(
                vertex_affinity=given[0],
                edge_affinity=given[1],
                neighbors_s=given[2],
                neighbors_t=given[3],
            )
            if is_exact:
                problem = replace(
                    problem,
                    vertex_affinity=(64 * given[0]).round() / 64,
                    edge_affinity=(64 * given[1]).round() / 64,
                )
            if is_padded:
                mask = torch.arange(num_nodes, device=device) < num_nodes - num_nodes // 4
                problem = replace(
                    problem,
                    mask=mask.expand(num_graphs, -1),
                    vertex_affinity=problem.vertex_affinity * (mask & mask.unsqueeze(1)),
                )
            name = f"N {num_nodes}, signal {signal}, noise {noise}, "
            yield name + ("padded" if is_padded else "whole"), is_exact, problem


def compare(problem: Problem, restarts: int, iterations: int) -> dict[str, float]:
    """Share of searches that end at the same permutation, and the objectives of both."""
    terms, vertex = DenseTerms(problem), problem.vertex_affinity
    n = vertex.shape[1]
    drawn = draw_uniform(restarts * (n * n + 2 * iterations), vertex, None)
    jitter, tenures = drawn.split((restarts * n * n, 2 * restarts * iterations))
    noise = -torch.log(-torch.log(jitter.view(restarts, n, n)))
    starts = soft_starts(terms, vertex, noise, mask=problem.mask)
    given = (terms, vertex, starts, tenures.view(iterations, restarts, 2))
    by_torch, by_kernel = (
        search(*given, mask=problem.mask) for search in (tabu_search, triton_tabu_search)
    )
    values = [objectives(problem, one).amax(1) for one in (by_torch, by_kernel)]
    return {
        "same_searches": (by_torch == by_kernel).all(2).float().mean().item(),
        "objective_torch": values[0].mean().item(),
        "objective_kernel": values[1].mean().item(),
        "worst_graph_percent": (
            100 * ((values[0] - values[1]) / values[0].abs().clamp_min(1)).max().item()
        ),
    }


def check(device: torch.device, num_graphs: int) -> dict[str, Any]:
    """Compare both searches everywhere, the start-up check included.

    Where the kernel does not even run, the error is all that is returned.
    """
    try:
        start_up = {side: check_kernel(device, side) for side in NUM_WARPS}
    except Exception as error:  # whatever the compiler or driver raises
        return {"serves": False, "is_right": False, "error": f"{type(error).__name__}: {error}"}
    rows = [
        {"cell": name, "exact": is_exact, **compare(problem, restarts=8, iterations=60)}
        for name, is_exact, problem in make_problems(device, num_graphs)
    ]
    exact = [row["same_searches"] for row in rows if row["exact"]]
    plain = [row for row in rows if not row["exact"]]
    by_torch, by_kernel = (
        statistics.fmean(row[f"objective_{way}"] for row in plain) for way in ("torch", "kernel")
    )
    difference = abs(by_torch - by_kernel) / abs(by_torch)
    serves = max(start_up.values()) <= TOLERANCE
    return {
        "serves": serves,
        "is_right": serves and min(exact) == 1.0 and difference <= TOLERANCE,
        "start_up_differences": start_up,
        "exact_same_searches": min(exact),
        "plain_same_searches": statistics.fmean(row["same_searches"] for row in plain),
        "plain_objective_difference": difference,
        "cells": rows,
    }


def time_ms(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds between two events around a call, after warm-up."""
    for _ in range(5):
        call()
    events = []
    torch.cuda.synchronize()
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        events.append(start.elapsed_time(end))
    return statistics.median(events)


def measure_floor(device: torch.device) -> dict[str, float]:
    """Microseconds of a launch, alone and inside a CUDA graph, and bandwidths in GB/s."""
    tiny = torch.zeros(1, device=device)

    def graphed_us(call: Callable[[], object], count: int = 100) -> float:
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                call()
        return 1e3 * time_ms(graph.replay, 20) / count

    def gb_per_s(num_bytes: int) -> float:
        given = torch.zeros(num_bytes // 4, device=device)
        made = torch.empty_like(given)
        return 2 * num_bytes / graphed_us(lambda: made.copy_(given)) / 1e3

    def launch_100() -> None:
        for _ in range(100):
            tiny.add_(0)

    return {
        "launch_us": 1e3 * time_ms(launch_100, 20) / 100,
        "launch_in_graph_us": graphed_us(lambda: tiny.add_(0)),
        "cache_gb_per_s": gb_per_s(2**23),
        "memory_gb_per_s": gb_per_s(2**29),
    }


def floor_ms(
    floor: dict[str, float], size: tuple[int, int], effort: tuple[int, int], cache_bytes: int
) -> float:
    """Time to read the table entries of all exchanges and to launch once."""
    (num_graphs, n), (restarts, iterations) = size, effort
    # four rows for the gradient; two entries for each pair with a node of the exchange
    read = 4 * (4 * n * n + 2 * (2 * n - 3)) * iterations * restarts * num_graphs
    fits = 4 * num_graphs * n**4 <= cache_bytes
    bandwidth = floor["cache_gb_per_s" if fits else "memory_gb_per_s"]
    return read / bandwidth / 1e6 + floor["launch_in_graph_us"] / 1e3


def make_solvers(ways: Sequence[str]) -> dict[tuple[Effort, str], Any]:
    """Every effort and way, each launched kernel by kernel and as a CUDA graph."""

    def switched(way: str, solver: Callable[..., Matching]) -> Callable[..., Matching]:
        def solve_so(*instance: Tensor) -> Matching:
            os.environ[SWITCH] = "1" if way == "triton" else "0"
            return solver(*instance)

        return solve_so

    solvers = {}
    for (restarts, iterations), way in itertools.product(EFFORTS, ways):
        for name, solver in ((way, solve), (f"{way}_graph", GraphedSolve())):
            ready = functools.partial(solver, restarts=restarts, iterations=iterations)
            solvers[(restarts, iterations), name] = switched(way, ready)
    return solvers


def measure_gaps(
    solvers: Solvers, num_nodes: int, num_graphs: int, long: Effort, device: torch.device
) -> dict[tuple[Effort, str], dict[str, float]]:
    """Gap of every solver to the best matching known, mean over all cells and in the worst one."""
    gaps: dict[tuple[Effort, str], list[float]] = {key: [] for key in solvers}
    for cell in CELLS:
        instance = [part.to(device) for part in make_instance(num_graphs, num_nodes, *cell)]
        found = {key: solver(*instance).objective for key, solver in solvers.items()}
        os.environ[SWITCH] = "0"
        known = find_best(instance, found.values(), long)
        for key, objective in found.items():
            gaps[key].append(gap_percent(objective, known).mean().item())
    return {
        key: {"gap_percent": statistics.fmean(rows), "gap_worst_cell_percent": max(rows)}
        for key, rows in gaps.items()
    }


def measure(
    size: tuple[int, int],
    solvers: Solvers,
    gaps: Mapping[tuple[Effort, str], Mapping[str, float]],
    floor: dict[str, float],
    device: torch.device,
    repeats: int,
) -> list[dict[str, Any]]:
    """Time of every effort and way for one size, with the gap of the same solver."""
    instance = [part.to(device) for part in make_instance(*size, *TIMED_CELL)]
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    rows = []
    for effort in dict.fromkeys(effort for effort, _ in solvers):
        row: dict[str, Any] = {"graphs": size[0], "nodes": size[1], "effort": effort}
        row["floor_ms"] = floor_ms(floor, size, effort, cache_bytes)
        row["target_ms"] = TARGETS_MS[size]
        for name in (name for one, name in solvers if one == effort):
            solver = solvers[effort, name]
            row[f"{name}_ms"] = time_ms(functools.partial(solver, *instance), repeats)
            row[f"{name}_objective"] = solver(*instance).objective.mean().item()
            row |= {f"{name}_{what}": value for what, value in gaps[effort, name].items()}
        rows.append(row)
    return rows


def measure_kernel(size: tuple[int, int], device: torch.device, repeats: int) -> dict[str, Any]:
    """Time the search alone, 16 restarts of 60 exchanges, by warps of a program."""
    num_graphs, n = size
    given = [part.to(device) for part in make_instance(num_graphs, n, *TIMED_CELL)]
    problem = Problem(
        vertex_affinity=given[0], edge_affinity=given[1], neighbors_s=given[2], neighbors_t=given[3]
    )
    terms = DenseTerms(problem)
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(num_graphs, 16, n, generator=generator).argsort(2).to(device)
    tenures = torch.rand(60, 16, 2, generator=generator).to(device)
    row: dict[str, Any] = {"graphs": num_graphs, "nodes": n, "effort": (16, 60)}
    for num_warps in WARPS:

        def search(num_warps: int = num_warps) -> object:
            return triton_tabu_search(
                terms, problem.vertex_affinity, starts, tenures, mask=None, num_warps=num_warps
            )

        row[f"ms_{num_warps}_warps"] = time_ms(search, repeats)
    return row


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions (None for Triton where it is not installed) and the hash of the sources."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "sources_sha256": hash_sources(),
        "warps": NUM_WARPS,
    }


def print_times(rows: list[dict[str, Any]], ways: Sequence[str]) -> None:
    """Print the table of whole solves: milliseconds, gap over all cells and of the worst one."""
    names = [f"{way}{end}" for way in ways for end in ("", "_graph")]
    heads = ["graphs x nodes, R, T", "floor ms", f"target ms, {' / '.join(ways)}", *names]
    print("| " + " | ".join(heads) + " |")
    print("| --- " * (len(names) + 3) + "|")
    for row in rows:
        label = f"{row['graphs']} x {row['nodes']}, {row['effort'][0]}, {row['effort'][1]}"
        targets = " / ".join(f"{row['target_ms'][way]:.1f}" for way in ways)
        cells = [label, f"{row['floor_ms']:.3f}", targets]
        for name in names:
            target = row["target_ms"][name.removesuffix("_graph")]
            gap, worst = row[f"{name}_gap_percent"], row[f"{name}_gap_worst_cell_percent"]
            reached = "" if row[f"{name}_ms"] > target else ", target reached"
            cells.append(f"{row[f'{name}_ms']:.2f} ({gap:.2f} %, worst {worst:.2f} %{reached})")
        print("| " + " | ".join(cells) + " |")


def main() -> int:
    """Check, time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer graphs, one size; no file")
    parser.add_argument("--graphs", type=int, default=8, help="graphs a cell of the comparison")
    parser.add_argument("--repeats", type=int, default=50, help="timed calls, after 5 of warm-up")
    parser.add_argument("--out", help="file; without it the dated one in benchmarks/results")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU is in reach of this torch; nothing was checked or timed")
        return 2
    warnings.simplefilter("always")
    device = torch.device("cuda", torch.cuda.current_device())
    facts = describe(device)
    print(facts)
    checked = check(device, 2 if args.quick else args.graphs)
    print({name: value for name, value in checked.items() if name != "cells"})
    for row in checked.get("cells", []):
        if row["same_searches"] < 1:
            print(row)
    floor = measure_floor(device)
    print({name: round(value, 2) for name, value in floor.items()})
    sizes = SIZES[:1] if args.quick else SIZES
    ways = ("torch", "triton") if checked["serves"] else ("torch",)
    alone = []
    if checked["serves"]:
        alone = [measure_kernel(size, device, args.repeats) for size in (*sizes, (16, 32))]
    for row in alone:
        print(row)
    solvers = make_solvers(ways)
    gaps = {
        num_nodes: measure_gaps(solvers, num_nodes, 2 if args.quick else GAP_GRAPHS, LONG, device)
        for num_nodes in dict.fromkeys(num_nodes for _, num_nodes in sizes)
    }
    rows = [
        row
        for size in sizes
        for row in measure(size, solvers, gaps[size[1]], floor, device, args.repeats)
    ]
    print_times(rows, ways)
    if not args.quick:
        path = Path(args.out or RESULTS / f"{facts['date']}-solver-gpu.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        result = {**facts, "check": checked, "floor": floor, "kernel_alone": alone, "rows": rows}
        path.write_text(json.dumps(result, indent=1))
        print(f"written to {path}")
    return 0 if checked["is_right"] else 1


if __name__ == "__main__":
    sys.exit(main())
