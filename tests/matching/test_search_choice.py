import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lvmmed.matching import search_choice
from lvmmed.matching.search_choice import (
    check_kernel,
    exact_instance,
    has_passed,
    is_kernel_wanted,
    objection_to_kernel,
    search_labels,
)
from lvmmed.matching.solver import solve
from lvmmed.matching.tabu import tabu_search
from lvmmed.matching.terms import DenseTerms
from lvmmed.types import InputError

GOOD = {"dtype": torch.float32, "num_nodes": 16, "is_dense": True, "has_triton": True}
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


@pytest.fixture
def fresh(monkeypatch):
    """No check has been made yet, nothing was said, and no CUDA graph is captured."""
    verdicts, told = {}, []
    monkeypatch.setattr(search_choice, "_verdicts", lambda: verdicts)
    monkeypatch.setattr(search_choice, "_told", lambda: told)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.mark.parametrize(
    ("switch", "device_type", "expected"),
    [
        ("1", "cuda", True),
        ("1", "cpu", False),
        ("1", "mps", False),
        ("0", "cuda", False),
        ("", "cuda", False),
        (None, "cuda", False),
    ],
)
def test_the_kernel_is_wanted_where_the_switch_is_on_and_the_device_is_its_own(
    switch, device_type, expected
):
    assert is_kernel_wanted(switch, device_type) is expected


def test_another_value_of_the_switch_is_refused():
    with pytest.raises(InputError, match="LVMMED_TRITON: got 'yes', need 0"):
        is_kernel_wanted("yes", "cuda")


@pytest.mark.parametrize("num_nodes", [2, 16, 32])
def test_nothing_is_said_against_what_the_kernel_takes(num_nodes):
    assert objection_to_kernel(**{**GOOD, "num_nodes": num_nodes}) is None


REASONS = [
    ({"has_triton": False}, "Triton is not installed"),
    ({"num_nodes": 33}, "graphs have N = 33 nodes, it takes at most 32"),
    ({"dtype": torch.float64}, "affinities are torch.float64, it takes torch.float32"),
    ({"is_dense": False}, "the batch is too large for a table"),
]


@pytest.mark.parametrize(("changes", "reason"), REASONS)
def test_each_reason_against_the_kernel_is_given(changes, reason):
    assert objection_to_kernel(**{**GOOD, **changes}).startswith(reason)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("changes", "reason"), REASONS)
def test_a_kernel_that_was_asked_for_and_cannot_serve_is_told_once(monkeypatch, changes, reason):
    given = {**GOOD, **changes}
    monkeypatch.setenv("LVMMED_TRITON", "1")
    monkeypatch.setattr(search_choice, "_has_triton", lambda: given["has_triton"])
    monkeypatch.setattr(search_choice, "has_passed", lambda *_: True)
    if not given["is_dense"]:
        monkeypatch.setattr("lvmmed.matching.terms.DENSE_BYTES", 0)
    n = given["num_nodes"]
    # fake tensors of a GPU (none is needed) have shapes only
    with FakeTensorMode():
        vertex = torch.empty(1, n, n, device="cuda", dtype=given["dtype"])
        edge = torch.empty(1, n, n, device="cuda", dtype=given["dtype"])
        graph = torch.empty(1, n, 1, dtype=torch.int64, device="cuda")
        with pytest.warns(RuntimeWarning, match=f"kernel for matching is not used: {reason}"):
            found = solve(vertex, edge, graph, graph, restarts=2, iterations=2)
        assert found.permutation.shape == (1, n)
        solve(vertex, edge, graph, graph, restarts=2, iterations=2)  # a second would be an error


@pytest.mark.usefixtures("fresh")
def test_a_graph_of_one_node_needs_no_kernel_and_no_warning(monkeypatch):
    monkeypatch.setenv("LVMMED_TRITON", "1")
    monkeypatch.setattr(search_choice, "_has_triton", lambda: False)
    with FakeTensorMode():
        one = torch.empty(1, 1, 1, device="cuda")
        graph = torch.full((1, 1, 1), -1, device="cuda")
        assert solve(one, one, graph, graph, restarts=2, iterations=2).permutation.shape == (1, 1)


def test_on_a_cpu_the_switch_changes_nothing(monkeypatch, generator):
    problem, starts, tenures = exact_instance(6, 5, generator=generator, device=CPU)
    given = (DenseTerms(problem), problem.vertex_affinity, starts, tenures)
    expected = tabu_search(*given, mask=problem.mask)
    for value in ("0", "1"):
        monkeypatch.setenv("LVMMED_TRITON", value)
        assert torch.equal(search_labels(*given, mask=problem.mask), expected)


@pytest.mark.parametrize("num_real", [10, 7])
def test_sums_of_the_checked_instances_are_exact(num_real, generator):
    problem, starts, _ = exact_instance(10, num_real, generator=generator, device=CPU)
    table = DenseTerms(problem).table
    assert torch.equal(table.double() * 64, (table.double() * 64).round())
    # ten bits and a sign: TF32 holds them
    assert (table.abs() * 64).max() <= 2**10
    assert torch.equal(starts.sort(2).values, torch.arange(10).expand(starts.shape))
    assert torch.equal(starts[..., num_real:], torch.arange(num_real, 10).expand(2, 4, -1))
    assert (problem.mask is None) == (num_real == 10)


def test_the_check_passes_the_same_search_and_notices_a_wrong_one(monkeypatch):
    monkeypatch.setattr(search_choice, "triton_tabu_search", tabu_search)
    assert check_kernel(CPU, 16) == 0.0

    def do_nothing(_terms, _vertex, starts, _tenures, *, mask):  # noqa: ARG001
        return starts

    monkeypatch.setattr(search_choice, "triton_tabu_search", do_nothing)
    assert check_kernel(CPU, 16) > 0.1

    def late(terms, vertex, starts, tenures, *, mask):
        return tabu_search(terms, vertex, starts, tenures[1:], mask=mask)

    monkeypatch.setattr(search_choice, "triton_tabu_search", late)
    assert check_kernel(CPU, 16) > 1e-4


@pytest.mark.usefixtures("fresh")
def test_a_check_is_made_once_for_each_device_and_binary(monkeypatch):
    checked = []
    monkeypatch.setattr(search_choice, "check_kernel", lambda *of: checked.append(of) or 0.0)
    for padded in (16, 16, 32, 16):
        assert has_passed(CUDA, padded)
    assert checked == [(CUDA, 16), (CUDA, 32)]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("difference", [0.01, float("nan")])
def test_a_wrong_kernel_is_put_aside_with_one_warning(monkeypatch, difference):
    monkeypatch.setattr(search_choice, "check_kernel", lambda *_: difference)
    with pytest.warns(RuntimeWarning, match="objectives differ from the torch search's"):
        assert not has_passed(CUDA, 16)
    assert not has_passed(CUDA, 16)  # a second warning would be an error


@pytest.mark.usefixtures("fresh")
def test_a_kernel_that_does_not_compile_is_put_aside_with_one_warning(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(search_choice, "check_kernel", fail)
    with pytest.warns(RuntimeWarning, match=r"did not run on cuda:0 \(RuntimeError: no"):
        assert not has_passed(CUDA, 16)
    assert not has_passed(CUDA, 16)  # a second warning would be an error


@pytest.mark.usefixtures("fresh")
def test_nothing_is_checked_while_a_cuda_graph_is_captured(monkeypatch):
    checked = []
    monkeypatch.setattr(search_choice, "check_kernel", lambda *of: checked.append(of) or 0.0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.warns(RuntimeWarning, match="cannot be checked while a CUDA graph is captured"):
        assert not has_passed(CUDA, 16)
    assert checked == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert has_passed(CUDA, 16)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert has_passed(CUDA, 16)
    assert checked == [(CUDA, 16)]


@pytest.mark.usefixtures("fresh")
def test_one_warning_is_given_in_all_whatever_fails_and_for_how_many_sizes(monkeypatch):
    monkeypatch.setattr(search_choice, "check_kernel", lambda *_: 1.0)
    for is_captured in (True, True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda now=is_captured: now)
        for padded in (8, 16, 32):
            if search_choice._told():
                assert not has_passed(CUDA, padded)  # a second warning would be an error
            else:
                with pytest.warns(RuntimeWarning, match="captured"):
                    assert not has_passed(CUDA, padded)


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [8, 16, 32])
def test_the_kernel_passes_its_check_on_this_gpu(padded):
    pytest.importorskip("triton", reason="Triton is not installed")
    assert check_kernel(torch.device("cuda"), padded) == 0.0
