"""Reproducible random weights that leave torch's global generators alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Let layers that are built inside draw their weights from `generator`.

    torch's layers initialise themselves from the global CPU generator, which cannot be passed in.
    So one number is drawn from `generator`, the global CPU generator is seeded with it for the
    length of the block, and its state is put back after. Layers must be built on the CPU.

    Args:
        generator: source of the seed; advances by one draw. None means seed 0.

    Yields:
        Nothing.
    """
    seed = 0
    if generator is not None:
        drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        seed = int(drawn.item())
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would touch every GPU's generator as well
        torch.default_generator.manual_seed(seed)
        yield
