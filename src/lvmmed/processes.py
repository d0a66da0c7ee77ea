"""Processes that work for another one, and end with it."""

import os
import threading
import time

POLL_S = 1.0
"""Seconds between two looks at the parent."""


def end_with_parent(parent: int) -> None:
    """Watch the parent from a thread, and end this process as soon as the parent is gone.

    SIGKILL leaves the parent no time to end its processes: they would go on, and write beside those
    of the next call.

    Args:
        parent: id of the process that started this one, as that one read it.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
