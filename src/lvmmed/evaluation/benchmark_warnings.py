"""What the runs that judged the encoders of a benchmark warn of, task by task."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskWarning:
    """A warning of runs that judged encoders on one task.

    Attributes:
        task: name of the task.
        text: what the runs say.
        encoders: labels of the encoders whose runs say it, each once.
        is_of_all: whether the runs of every encoder that was judged on the task say it.
    """

    task: str
    text: str
    encoders: tuple[str, ...]
    is_of_all: bool


def task_warnings(
    runs: Iterable[tuple[str, str, tuple[str, ...]]],
) -> tuple[TaskWarning, ...]:
    """Put equal warnings of a task together.

    Args:
        runs: (task, label of the encoder, warnings) of every judging run that is done.

    Returns:
        One for each task and text, in the order they first come up.
    """
    judged: dict[str, dict[str, None]] = {}
    found: dict[tuple[str, str], dict[str, None]] = {}
    for task, label, texts in runs:
        judged.setdefault(task, {})[label] = None
        for text in texts:
            found.setdefault((task, text), {})[label] = None
    return tuple(
        TaskWarning(
            task=task, text=text, encoders=tuple(labels), is_of_all=len(labels) == len(judged[task])
        )
        for (task, text), labels in found.items()
    )
