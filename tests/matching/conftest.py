"""One thread: the tensors of these tests are so small that a second one only waits."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
