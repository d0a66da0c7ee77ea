"""How often the matching solver is optimal: 200 instances of ten nodes that a MILP solves to proof.

Ten cells (signal 0 to 2, noise 0.05 and 0.2) of 20 instances each. HiGHS proves an instance in
some 0.1 to 20 s; every proof is kept in the file of results, so an interrupted run goes on where it
stopped, and a later run with the same file judges a changed solver without proving anything again.
Beside the proofs: 128 instances in each of the same cells against the best of a long run with
random numbers of its own and of all efforts (some minutes; `--against-long-run`, kept in the file).

    PYTHONPATH=tests python benchmarks/solver_exact.py --out FILE --against-long-run
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
from typing import Any

import scipy
import torch
from reference.matching_instances import instances
from reference.matching_search import integer_program
from solver_cpu import LONG, find_best, gap_percent

from lvmmed.files import write_atomically
from lvmmed.matching.solver import objective, solve

RESULTS = Path(__file__).parent / "results"
NUM_NODES, NUM_GRAPHS = 10, 20
CELLS = tuple(itertools.product((0.0, 0.6, 0.8, 1.2, 2.0), (0.05, 0.2)))
EFFORTS = ((4, 16), (8, 30), (32, 60))
TOLERANCE = 1e-5
NUM_COMPARED = 128  # graphs of each cell, against a long run

Row = dict[str, Any]


def write_json(path: Path, content: Row) -> None:
    """Replace the file in one move."""
    write_atomically(path, lambda place: place.write_text(json.dumps(content, indent=1)))


def make_cell(at: int, num_graphs: int = NUM_GRAPHS, seed: int = 1000) -> tuple[torch.Tensor, ...]:
    """Instances of one cell in double precision; the number of the cell counts the seeds."""
    signal, noise = CELLS[at]
    problem: tuple[torch.Tensor, ...] = instances(
        num_graphs, NUM_NODES, signal=signal, noise=noise, seed=seed + at
    )
    return problem


def prove(known: list[Row], path: Path, time_limit_s: float) -> list[Row]:
    """Solve what is not known yet by MILP and keep every proof at once."""
    done = {(row["signal"], row["noise"], row["graph"]): row for row in known}
    for at, (signal, noise) in enumerate(CELLS):
        problem = make_cell(at)
        identity = torch.arange(NUM_NODES).expand(NUM_GRAPHS, -1)
        of_identity = objective(*problem, identity).tolist()
        for graph in range(NUM_GRAPHS):
            key = (signal, noise, graph)
            if key in done:
                if abs(done[key]["identity"] - of_identity[graph]) > TOLERANCE:
                    raise SystemExit(f"{path}: instance {key} is another one; use a new file")
                continue
            start = time.perf_counter()
            found, upper, is_proved = integer_program(
                *(part[graph].numpy() for part in problem), time_limit_s=time_limit_s
            )
            done[key] = {
                "signal": signal,
                "noise": noise,
                "graph": graph,
                "identity": of_identity[graph],
                "milp": found,
                "upper": upper,
                "proved": is_proved,
                "milp_s": round(time.perf_counter() - start, 2),
            }
            write_json(path, {"instances": list(done.values())})
            print(f"{len(done)} of {len(CELLS) * NUM_GRAPHS}: {done[key]}", flush=True)
    return [done[(*cell, graph)] for cell in CELLS for graph in range(NUM_GRAPHS)]


def judge(rows: list[Row]) -> list[Row]:
    """Share of the proved instances that each effort of the solver solves, by cell and in all."""
    summary = []
    for restarts, iterations in EFFORTS:
        by_cell = {}
        num_optimal, num_proved, worst = 0, 0, 0.0
        for at, cell in enumerate(CELLS):
            found = solve(*make_cell(at), restarts=restarts, iterations=iterations).objective
            here = [row for row in rows if (row["signal"], row["noise"]) == cell]
            lost = [row["milp"] - found[row["graph"]].item() for row in here if row["proved"]]
            by_cell[str(cell)] = [sum(one <= TOLERANCE for one in lost), len(lost)]
            num_optimal += by_cell[str(cell)][0]
            num_proved += len(lost)
            worst = max(worst, *lost)
        summary.append(
            {
                "restarts": restarts,
                "iterations": iterations,
                "optimal": num_optimal,
                "proved": num_proved,
                "largest_loss": worst,
                "optimal_and_proved_by_cell": by_cell,
            }
        )
    return summary


def compare_with_long_run(num_graphs: int, long: tuple[int, int]) -> list[Row]:
    """Share of instances where each effort finds the best known, and its mean gap, by cell."""
    summary: list[Row] = [
        {"restarts": effort[0], "iterations": effort[1], "cells": {}} for effort in EFFORTS
    ]
    for at, cell in enumerate(CELLS):
        problem = make_cell(at, num_graphs, 2000)
        found = [solve(*problem, restarts=r, iterations=t).objective for r, t in EFFORTS]
        known = find_best(problem, found, long)
        for one, values in zip(summary, found, strict=True):
            one["cells"][str(cell)] = {
                "share_best": (known["best"] - values <= TOLERANCE).double().mean().item(),
                "gap_mean_percent": gap_percent(values, known).mean().item(),
            }
    return summary


def print_comparison(summary: list[Row]) -> None:
    """Print the worst cell of each effort and the mean of all."""
    print("| restarts, iterations | best known, worst cell | mean gap %, worst cell | mean gap % |")
    print("| --- | --- | --- | --- |")
    for one in summary:
        shares, gaps = (
            [cell[name] for cell in one["cells"].values()]
            for name in ("share_best", "gap_mean_percent")
        )
        print(
            f"| {one['restarts']}, {one['iterations']} | {min(shares):.3f} | {max(gaps):.3f} | "
            f"{statistics.fmean(gaps):.3f} |"
        )


def main() -> None:
    """Prove, judge, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    default = RESULTS / f"{date}-solver-exact-n{NUM_NODES}.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--time-limit-s", type=float, default=300.0, help="of one MILP")
    parser.add_argument("--against-long-run", action="store_true", help="128 graphs a cell")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.out.read_text())["instances"] if args.out.exists() else []
    rows = prove(known, args.out, args.time_limit_s)
    summary = judge(rows)
    print("| restarts | iterations | optimal | proved | largest loss |")
    print("| --- | --- | --- | --- | --- |")
    for one in summary:
        print(
            f"| {one['restarts']} | {one['iterations']} | {one['optimal']} | {one['proved']} | "
            f"{one['largest_loss']:.2g} |"
        )
    machine = {
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
    }
    result = {"date": date, "machine": machine, "summary": summary, "instances": rows}
    if args.against_long_run:
        compared = compare_with_long_run(NUM_COMPARED, LONG)
        print(f"\n{NUM_COMPARED} graphs a cell, long run {LONG[0]} x {LONG[1]}\n")
        print_comparison(compared)
        result |= {"compared_graphs_a_cell": NUM_COMPARED, "long": LONG, "compared": compared}
    write_json(args.out, result)


if __name__ == "__main__":
    main()
