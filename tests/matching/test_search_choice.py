import pytest
import torch

from lvmmed.matching import search_choice
from lvmmed.matching.search_choice import (
    check_kernel,
    exact_instance,
    has_passed,
    search_labels,
    should_use_kernel,
)
from lvmmed.matching.tabu import tabu_search
from lvmmed.matching.terms import DenseTerms
from lvmmed.types import InputError

GOOD = {
    "switch": "1",
    "device_type": "cuda",
    "dtype": torch.float32,
    "num_nodes": 16,
    "is_dense": True,
    "has_triton": True,
}
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
    ("changes", "expected"),
    [
        ({}, True),
        ({"num_nodes": 2}, True),
        ({"num_nodes": 32}, True),
        ({"switch": None}, False),
        ({"switch": ""}, False),
        ({"switch": "0"}, False),
        ({"device_type": "cpu"}, False),
        ({"device_type": "mps"}, False),
        ({"dtype": torch.float64}, False),
        ({"num_nodes": 1}, False),
        ({"num_nodes": 33}, False),
        ({"is_dense": False}, False),
        ({"has_triton": False}, False),
    ],
)
def test_the_kernel_serves_only_where_all_conditions_hold(changes, expected):
    assert should_use_kernel(**{**GOOD, **changes}) is expected


def test_another_value_of_the_switch_is_refused():
    with pytest.raises(InputError, match="LVMMED_TRITON: got 'yes', need 0"):
        should_use_kernel(**{**GOOD, "switch": "yes"})


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
