"""Run a function in several gloo processes and collect what each returns.

The function must be importable by name (put it in a module under tests/reference), because the
processes are started afresh.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], *arguments: Any, world_size: int = 2) -> list[Any]:
    """Call `function(*arguments)` in every rank; returns the answers in order of rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, args=(world_size, folder, function, arguments), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]


def _work(rank: int, world_size: int, folder: str, function: Any, arguments: Any) -> None:
    store = torch.distributed.FileStore(str(Path(folder) / "store"), world_size)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
