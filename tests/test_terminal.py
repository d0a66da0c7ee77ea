"""What is printed is what was said: brackets of names are no markup."""

import io

import pytest
from reference.run_folders import write_pretrain
from reference.tiny_store import write_tiny_store
from rich.console import Console

from lvmmed import terminal
from lvmmed.cli import run_command
from lvmmed.terminal import print_line, print_table, progress_bar

NAMES = ["my [v1] run", "a[/b]", "x[red]y", r"back\[slash]", "say :smile:"]


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 60 columns whose text is kept."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=60, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_printed_as_it_is(name, capsys):
    line = f"{name} {100 * 'long '}end"
    print_line(line)
    assert capsys.readouterr().out == f"{line}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_names_as_they_are(name, capsys):
    print_table(f"run {name}", ("what", "value"), [(name, "1"), ("2", name)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"run {name}")
    assert printed.count(name) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_its_note_as_it_is(name, screen):
    with progress_bar(f"on {name}") as update:
        update(1, 2, f"at {name}")
    assert f"on {name}" in screen.getvalue()
    assert f"at {name}" in screen.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_line_of_progress_is_printed_as_it_is(name, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "PLAIN_LINE_EVERY_S", 0.0)
    with progress_bar("probe") as update:
        update(1, 2, name)
    assert capsys.readouterr().out == f"probe: 1/2 {name}\n"


@pytest.mark.parametrize("name", ["my [v1] run", "a[/b]"])
def test_commands_take_names_with_brackets(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tiny_store(tmp_path / name / "store")
    write_pretrain(tmp_path / name / "run")
    for words, says in (
        (["inspect", f"{name}/store"], f"image store {name}/store"),
        (["inspect", f"{name}/run"], f"run {name}/run"),
        (["report", f"{name}/run", "--out", f"{name}.html"], f"report: {name}.html"),
    ):
        assert run_command(words) == 0
        assert says in capsys.readouterr().out
    assert (tmp_path / f"{name}.html").is_file()
