"""The Triton kernel is believed only where a GPU has judged the sources of today."""

import hashlib
import json
import re

import pytest


@pytest.fixture
def gpu_results(script):
    return script("solver_gpu_results")


@pytest.fixture
def planted(tmp_path):
    """Two sources and a function that writes a dated result beside them."""
    sources = (tmp_path / "kernel.py", tmp_path / "search.py")
    for path, text in zip(sources, ("kernel\n", "search\n"), strict=True):
        path.write_text(text, encoding="utf-8")

    def plant(date, **facts):
        path = tmp_path / f"{date}-solver-gpu.json"
        path.write_text(json.dumps(facts), encoding="utf-8")
        return path

    return sources, plant


RIGHT_HASH = hashlib.sha256(b"kernel\nsearch\n").hexdigest()
RIGHT = {"sources_sha256": RIGHT_HASH, "check": {"is_right": True}}


def test_the_newest_result_from_a_gpu_is_of_the_present_sources_and_right(gpu_results):
    newest = gpu_results.newest_result()
    if newest is None:
        pytest.skip("the kernel has not been measured on a GPU yet: no *-solver-gpu.json")
    assert gpu_results.complaints(newest) == []


def test_a_right_result_of_the_same_sources_has_nothing_against_it(gpu_results, planted):
    sources, plant = planted
    assert gpu_results.complaints(plant("2026-01-01", **RIGHT), sources) == []


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({**RIGHT, "sources_sha256": "0" * 64}, [r"other sources than today's \(kernel.py, sea"]),
        ({"check": {"is_right": True}}, ["other sources"]),
        ({"sources_sha256": RIGHT_HASH, "check": {"is_right": False}}, ["not say .* was right"]),
        ({"sources_sha256": RIGHT_HASH}, ["not say that the kernel was right"]),
        ({}, ["other sources", "not say that the kernel was right"]),
    ],
    ids=["wrong hash", "no hash", "kernel wrong", "kernel not judged", "empty"],
)
def test_each_fault_of_a_result_is_told(gpu_results, planted, facts, said):
    sources, plant = planted
    found = gpu_results.complaints(plant("2026-01-01", **facts), sources)
    assert len(found) == len(said)
    for line, part in zip(found, said, strict=True):
        assert re.search(part, line)


def test_a_changed_source_is_noticed(gpu_results, planted):
    sources, plant = planted
    result = plant("2026-01-01", **RIGHT)
    for path in sources:
        before = path.read_text(encoding="utf-8")
        path.write_text(before + "#", encoding="utf-8")
        assert len(gpu_results.complaints(result, sources)) == 1
        path.write_text(before, encoding="utf-8")
    assert gpu_results.complaints(result, sources) == []


def test_the_last_date_is_the_newest_and_none_may_be_there(gpu_results, planted, tmp_path):
    assert gpu_results.newest_result(tmp_path) is None
    _, plant = planted
    for date in ("2026-02-01", "2026-03-01", "2025-12-31"):
        plant(date)
    assert gpu_results.newest_result(tmp_path).name == "2026-03-01-solver-gpu.json"


def test_judged_are_the_kernel_its_caller_the_search_and_the_table_it_reads(gpu_results, script):
    names = [path.name for path in gpu_results.SOURCES]
    assert names == ["triton_kernel.py", "triton_search.py", "tabu.py", "terms.py"]
    text = b"".join(path.read_bytes() for path in gpu_results.SOURCES)
    assert gpu_results.hash_sources() == hashlib.sha256(text).hexdigest()
    assert script("solver_gpu").hash_sources is gpu_results.hash_sources  # what results are given
