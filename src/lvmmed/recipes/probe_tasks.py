"""The tasks of `lvmmed probe`."""

from collections.abc import Callable, Mapping

from lvmmed.config import did_you_mean
from lvmmed.recipes.judging import JudgingResult
from lvmmed.recipes.probing import probe
from lvmmed.recipes.segmentation_probing import probe_segmentation
from lvmmed.types import InputError

PROBE_TASKS: Mapping[str, Callable[..., JudgingResult]] = {
    "classification": probe,
    "segmentation": probe_segmentation,
}
"""Task -> function that makes the run; all take the same arguments."""


def probe_of(task: str) -> Callable[..., JudgingResult]:
    """Find what probes a task; an unknown one is refused with an InputError."""
    if task not in PROBE_TASKS:
        raise InputError(f"--task: got {task!r}; {did_you_mean(task, list(PROBE_TASKS))}")
    return PROBE_TASKS[task]
