"""Fixtures of the whole suite; real images are found through LVMMED_TEST_DATA."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none, and say so."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def script():
    """Import a script of the benchmarks by its name, as its neighbours do."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def one_thread():
    """Work in one thread: on small tensors a second one costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real image packs; skips, and says so, where it is absent."""
    folder = os.environ.get("LVMMED_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real images: set LVMMED_TEST_DATA to the folder of the image packs")
    return Path(folder)
