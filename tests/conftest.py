"""Fixtures of the whole suite; real images are found through LVMMED_TEST_DATA."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

# one thread, here and in the processes that tests start: tensors are small, two files of tests run
# side by side, and more threads round otherwise
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none, and say so."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


@pytest.fixture(scope="module")
def script():
    """Import a script of the benchmarks by its name, as its neighbours do."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


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
