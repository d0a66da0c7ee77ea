"""The kernel against the torch search, in Triton's interpreter: no GPU is needed.

The interpreter has to be chosen before Triton is imported, hence the processes of their own.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from reference.matching_instances import instances

from lvmmed.matching import tabu
from lvmmed.matching.graph import Problem
from lvmmed.matching.starts import soft_starts
from lvmmed.matching.tabu import tabu_ends, tabu_search
from lvmmed.matching.terms import DenseTerms
from lvmmed.matching.triton_search import padded_nodes, triton_tabu_search
from lvmmed.types import InputError

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux wheels only)"
)

SEARCH = """
import sys, torch
from lvmmed.matching.graph import Problem
from lvmmed.matching.terms import DenseTerms
from lvmmed.matching.triton_search import triton_tabu_search
found = []
for problem, starts, tenures in torch.load(sys.argv[1]):
    problem = Problem(**problem)
    found.append(triton_tabu_search(
        DenseTerms(problem), problem.vertex_affinity, starts, tenures, mask=problem.mask
    ))
torch.save(found, sys.argv[2])
"""

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lvmmed.matching.triton_kernel import search_kernel
from lvmmed.matching.triton_search import NUM_WARPS
kinds = dict(vertex="*fp32", table="*fp32", starts="*i64", ends="*i32", is_real="*u1", found="*i64",
             num_nodes="i32", num_searches="i32", num_steps="i32", padded="constexpr")
for padded, num_warps in NUM_WARPS.items():
    source = ASTSource(fn=search_kernel, signature=kinds, constexprs={"padded": padded})
    options = {"num_warps": num_warps, "num_stages": 1}
    binary = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(binary.asm["ptx"], end="END")
"""


def run(code, *arguments, **variables):
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def build_case(n, *, num_real=None, noise=0.2, signal=0.0, seed=0, steps=8, k=None):
    """A problem of training with its own starts, two searches.

    Affinities are in steps of 1/1024: all sums are exact, in whatever order they are taken.
    """
    vertex, edge, *graphs = instances(
        1, n, k=k or min(5, n - 1), signal=signal, noise=noise, seed=seed, dtype=torch.float32
    )
    vertex, edge = ((1024 * values).round() / 1024 for values in (vertex, edge))
    mask = None
    if num_real is not None:
        mask = (torch.arange(n) < num_real).unsqueeze(0)
        vertex = vertex * (mask.unsqueeze(1) & mask.unsqueeze(2))
    problem = Problem(
        vertex_affinity=vertex,
        edge_affinity=edge,
        neighbors_s=graphs[0],
        neighbors_t=graphs[1],
        mask=mask,
    )
    generator = torch.Generator().manual_seed(seed)
    gumbel = -torch.log(-torch.log(torch.rand(2, n, n, generator=generator)))
    starts = soft_starts(DenseTerms(problem), vertex, gumbel, mask=mask)
    return problem, starts, torch.rand(steps, 2, 2, generator=generator)


def build_ties(n, num_real=None):
    """All affinities equal, so that the order of the pairs decides every exchange."""
    problem, starts, tenures = build_case(n, num_real=num_real)
    vertex, edge = (torch.ones_like(v) for v in (problem.vertex_affinity, problem.edge_affinity))
    if problem.mask is not None:
        vertex = vertex * (problem.mask.unsqueeze(1) & problem.mask.unsqueeze(2))
    equal = Problem(**{**vars(problem), "vertex_affinity": vertex, "edge_affinity": edge})
    return equal, starts, tenures


QUICK = {
    "five nodes": build_case(5, noise=1.0),
    "eight nodes, six real": build_case(8, num_real=6, noise=1.0),
    "rules decide": build_case(10, noise=1.0, seed=21, steps=24),
    "equal affinities": build_ties(6),
}

THOROUGH = {
    **{
        f"{n} nodes, {num_real or n} real, noise {noise}, seed {seed}": build_case(
            n, num_real=num_real, noise=noise, seed=seed, steps=12
        )
        for n, num_real in ((5, None), (8, 5), (10, None), (10, 7), (16, None), (16, 11))
        for noise, seed in ((0.05, 1), (1.0, 2), (1.0, 3))
    },
    "one real node": build_case(5, num_real=1),
    "two nodes": build_case(2, k=1),
    "two blocks wide": build_case(17, noise=1.0, num_real=15),
    "as large as it gets": build_case(32, noise=1.0),
    "aspiration decides": build_case(10, noise=1.0, seed=29, steps=16),
    "aspiration decides, padded": build_case(8, num_real=6, noise=1.0, seed=24, steps=12),
    "tenures decide, padded": build_case(8, num_real=6, noise=1.0, seed=5, steps=16),
    "aligned views": build_case(16, signal=2.0),
    "no steps": build_case(8, steps=0),
    "equal affinities, sixteen nodes": build_ties(16),
    "equal affinities, padded": build_ties(9, num_real=7),
}


def found_by_kernel(cases, folder):
    given = [(vars(problem), starts, tenures) for problem, starts, tenures in cases.values()]
    torch.save(given, folder / "cases.pt")
    run(SEARCH, folder / "cases.pt", folder / "found.pt", TRITON_INTERPRET="1")
    return dict(zip(cases, torch.load(folder / "found.pt"), strict=True))


def found_by_torch(problem, starts, tenures):
    terms = DenseTerms(problem)
    return tabu_search(terms, problem.vertex_affinity, starts, tenures, mask=problem.mask)


@needs_triton
def test_the_kernel_finds_what_the_torch_search_finds(tmp_path):
    found = found_by_kernel(QUICK, tmp_path)
    for name, case in QUICK.items():
        assert torch.equal(found[name], found_by_torch(*case)), name


@pytest.fixture(scope="module")
def thorough(tmp_path_factory):
    return found_by_kernel(THOROUGH, tmp_path_factory.mktemp("kernel"))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", THOROUGH)
def test_the_kernel_follows_the_torch_search(thorough, name):
    assert torch.equal(thorough[name], found_by_torch(*THOROUGH[name]))


def test_the_cases_tell_a_wrong_kernel_from_a_right_one(monkeypatch):
    moved = [not torch.equal(found_by_torch(*case), case[1]) for case in THOROUGH.values()]
    assert sum(moved) > len(moved) / 2

    cases = {**QUICK, **THOROUGH}
    expected = {name: found_by_torch(*case) for name, case in cases.items()}
    # the two labels of an exchange mixed up
    for name in ("rules decide", "tenures decide, padded"):
        problem, starts, tenures = cases[name]
        found = found_by_torch(problem, starts, tenures.flip(2))
        assert not torch.equal(found, expected[name]), name
    # no tabu exchange allowed, however good
    monkeypatch.setattr(tabu, "ASPIRATION_MARGIN", torch.inf)
    for name in ("rules decide", "aspiration decides", "aspiration decides, padded"):
        assert not torch.equal(found_by_torch(*cases[name]), expected[name]), name


@needs_triton
@pytest.mark.slow
def test_values_that_are_not_finite_still_give_permutations(tmp_path):
    cases = {}
    for value in (torch.nan, torch.inf, -torch.inf):
        problem, starts, tenures = build_case(6, steps=6)
        vertex, edge = problem.vertex_affinity.clone(), problem.edge_affinity.clone()
        vertex[0, 1, 2], edge[0, 3, 4] = value, value
        spoilt = {**vars(problem), "vertex_affinity": vertex, "edge_affinity": edge}
        cases[value] = (Problem(**spoilt), starts, tenures)
    for found in found_by_kernel(cases, tmp_path).values():
        assert torch.equal(found.sort(2).values, torch.arange(6).expand(1, 2, 6))


@needs_triton
def test_compiled_for_an_h100_the_kernel_writes_to_global_memory_once(tmp_path):
    # compute capability 9.0; nothing is run
    listings = run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).split("END")[:-1]
    assert len(listings) == 3
    for ptx in listings:
        assert ".target sm_90" in ptx
        assert ptx.count("st.global") == 1
        assert "atom." not in ptx


def test_without_triton_the_solver_works_as_ever():
    code = """
import sys, torch
sys.modules["triton"] = None  # any import of it fails
from lvmmed.matching.solver import solve
graph = torch.tensor([[[1], [0]]])
print(solve(torch.eye(2).unsqueeze(0), torch.ones(1, 2, 2), graph, graph).objective.item())
"""
    # by hand: two nodes and two edges kept
    assert float(run(code, LVMMED_TRITON="1")) == 4.0


def test_blocks_have_the_next_power_of_two_and_eight_at_least():
    assert [padded_nodes(n) for n in (2, 5, 8, 9, 16, 17, 32)] == [8, 8, 8, 16, 16, 32, 32]


def test_rounding_the_ends_up_changes_no_comparison():
    ends = tabu_ends(torch.rand(50, 4, 2, generator=torch.Generator().manual_seed(0)), 10)
    steps = torch.arange(70).view(-1, 1, 1, 1)
    assert torch.equal(ends > steps, ends.ceil().to(torch.int32) > steps)


def test_what_the_kernel_does_not_take_is_refused():
    problem, starts, tenures = build_case(5)
    terms = DenseTerms(problem)
    with pytest.raises(InputError, match="float64, the kernel takes float32"):
        triton_tabu_search(terms, problem.vertex_affinity.double(), starts, tenures, mask=None)
    with pytest.raises(InputError, match="N = 33 nodes"):
        triton_tabu_search(
            terms, torch.zeros(1, 33, 33), torch.zeros(1, 2, 33).long(), tenures, mask=None
        )


def test_a_graph_of_one_node_has_nothing_to_search():
    starts = torch.zeros(1, 2, 1, dtype=torch.int64)
    terms = DenseTerms(build_case(5)[0])
    found = triton_tabu_search(terms, torch.zeros(1, 1, 1), starts, torch.rand(3, 2, 2), mask=None)
    assert torch.equal(found, starts)
