"""What the command line draws: progress, and tables."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_LINE_EVERY_S = 60.0
console = Console()


@contextmanager
def progress_bar(label: str, *, has_time: bool = True) -> Iterator[Callable[..., None]]:
    """Show `update(done, total, note)` as a bar, or as a line a minute off a terminal.

    Without `has_time` the bar leaves the time that is left to the note, where units of work are
    too unequal to tell it.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            *((TimeRemainingColumn(),) if has_time else ()),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=1, note="")
            yield lambda done, total, note="": bar.update(
                task, completed=done, total=total, note=note
            )
        return
    last = time.monotonic()

    def plain(done: float, total: float, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            print_line(f"{label}: {done:.0f}/{total:.0f} {note}")

    yield plain


def print_line(line: str) -> None:
    """Print a line as it is: brackets of file names are no markup, and long lines are not cut."""
    console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under a title; long words are folded, not cut."""
    heading = Text(title, style="table.title")
    table = Table(title=heading, title_justify="left", header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
