"""The command line: thin; every command calls one function and prints what it returned."""

import errno
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import lvmmed
from lvmmed.files import refuse_unwritable
from lvmmed.terminal import print_line, print_table, progress_bar
from lvmmed.types import InputError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Learn encoders of medical images without labels, and judge them. For research; not a "
    "medical device; not for diagnosis.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="Named, complete configurations of a run.")
app.add_typer(recipes_app, name="recipes")

OF_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
"""Errors of disks and permissions: the user's to mend, wherever they come up."""

GOES_ON = {
    "prepare": "the same command",
    "benchmark": "the same command",
    "pretrain": "`pretrain --resume`",
}
"""What goes on after Ctrl-C; other commands begin anew."""


def _writable(out: Path) -> Path:
    refuse_unwritable(out, "--out")
    return out


OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write.", callback=_writable)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field: group.field=value.")
]
JudgingOverrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting of judging: field=value.")
]
Weights = Annotated[
    str,
    typer.Option("--weights", help="random, timm:NAME, a run folder, or a weight file."),
]
BackboneName = Annotated[
    str | None,
    typer.Option("--backbone", help="Name in timm; needed where the weights do not say."),
]
SizePx = Annotated[
    int | None, typer.Option("--size", help="Side of the input in pixels; default: the card's.")
]


@app.command()
def demo(
    out: OutFolder = Path("demo"),
    data: Annotated[
        Path | None, typer.Option(help="Labelled images to use instead of phantoms.")
    ] = None,
) -> None:
    """Walk the whole main job, small, on generated images; ends with report.html."""
    from lvmmed.recipes.demo import run_demo

    with progress_bar("demo") as update:
        summary = run_demo(out, data=data, progress=update)
    for line in summary.lines:
        print_line(line)


@app.command()
def doctor() -> None:
    """Say what this machine can do, what is missing, and what to do about it."""
    from lvmmed.recipes.doctor import diagnose

    rows = [(f.subject, "ok" if f.is_good else "missing", f.found, f.advice) for f in diagnose()]
    print_table("lvmmed doctor", ("what", "", "found", "advice"), rows)


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(help="Folders, globs, files or list files.")],
    out: OutFolder,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality where files do not say.")] = None,
    size: Annotated[int, typer.Option(help="Short side of stored images, pixels.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Processes; 0 = this one.")] = None,
) -> None:
    """Read DICOM, NIfTI, PNG, JPEG, TIFF and BMP files into an image store."""
    from lvmmed.data.prepare import prepare as run

    with progress_bar("prepare") as update:
        summary = run(
            sources,
            out,
            dataset=dataset,
            modality=modality,
            size=size,
            workers=workers,
            progress=update,
        )
    for line in summary.lines():
        print_line(line)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A store, a run folder or a weight file.")],
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG) here.")] = None,
    matching: Annotated[
        Path | None, typer.Option(help="Draw matched graphs of a run of lvm-med (PNG) here.")
    ] = None,
    graphs: Annotated[int | None, typer.Option(help="Graphs to draw at most.")] = None,
    backbone: BackboneName = None,
) -> None:
    """Say what is in a store, a run folder or a weight file."""
    from lvmmed.recipes.inspection import inspect_path

    found = inspect_path(path, sheet=sheet, matching=matching, num_graphs=graphs, backbone=backbone)
    print_table(found.title, ("what", "value"), found.rows)


@app.command()
def pretrain(
    data: Annotated[str, typer.Option("--data", help="Folder of the image store.")],
    out: OutFolder,
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a YAML file.")] = "lvm-med",
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
) -> None:
    """Learn an encoder from unlabelled images."""
    from lvmmed.recipes.pretraining import pretrain as run
    from lvmmed.recipes.pretraining_recipes import refuse_two_lengths, resolve_config

    refuse_two_lengths(overrides or [])
    config = resolve_config(recipe, overrides or [], store=data)
    with progress_bar("pretrain") as update:
        result = run(config, out, resume=resume, progress=update)
    for line in result.lines():
        print_line(line)


@app.command()
def probe(
    weights: Annotated[
        list[str],
        typer.Option(
            help="random, timm:NAME, a run folder, or a weight file; several are one encoder a "
            "seed, judged by their mean."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Class folders, images/ and masks/, or a manifest.")],
    out: OutFolder,
    task: Annotated[
        str,
        typer.Option(help="classification (kNN and linear) or segmentation (linear, with masks)."),
    ] = "classification",
    backbone: BackboneName = None,
    size: SizePx = None,
    overrides: JudgingOverrides = None,
) -> None:
    """Judge a frozen encoder by simple probes, selected on val, tested once.

    With few labels: --set 'fractions=[0.01,0.05,0.1,0.25,1.0]' fits on those shares of train.
    """
    from lvmmed.recipes.probe_tasks import probe_of

    run = probe_of(task)
    with progress_bar("probe") as update:
        result = run(
            weights,
            data,
            out,
            backbone=backbone,
            size_px=size,
            overrides=overrides or [],
            progress=update,
        )
    for line in result.lines():
        print_line(line)


@app.command()
def finetune(
    task: Annotated[str, typer.Argument(help="classification")],
    data: Annotated[Path, typer.Option(help="Labelled images: class folders or a manifest.")],
    weights: Weights,
    out: OutFolder,
    backbone: BackboneName = None,
    overrides: JudgingOverrides = None,
) -> None:
    """Fine-tune an encoder on labels; selected on val, tested once."""
    from lvmmed.recipes.finetuning import finetune as run

    with progress_bar("finetune") as update:
        result = run(
            task,
            data,
            weights,
            out,
            backbone=backbone,
            overrides=overrides or [],
            progress=update,
        )
    for line in result.lines():
        print_line(line)


class _BenchmarkCommand(TyperCommand):
    """Lists the shipped suites at the end of its help; they are read for that alone."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from lvmmed.recipes.benchmark_suite import suite_lines

        self.epilog = "\n\n".join(["Shipped suites:", *suite_lines()])
        super().format_help(ctx, formatter)


@app.command(cls=_BenchmarkCommand)
def benchmark(
    suite: Annotated[str, typer.Argument(help="Name of a suite, or a YAML file.")],
    out: OutFolder,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the suite's relative paths; none for smoke.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field of the suite: field=value.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes at once; several GPUs are shared out among them.")
    ] = 1,
    stop_after: Annotated[
        float | None, typer.Option(help="Minutes after which no further cell is begun.")
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(help="Archive (.tar.gz, .tar.xz) of what a later call needs, to carry away."),
    ] = None,
) -> None:
    """Compare methods on tasks: runs what is missing, then writes table and report."""
    from lvmmed.recipes.benchmark import benchmark as run

    with progress_bar("benchmark", has_time=False) as update:
        result = run(
            suite,
            out,
            data=data,
            overrides=overrides or [],
            num_jobs=jobs,
            stop_after_min=stop_after,
            pack=pack,
            progress=update,
        )
    for line in result.lines():
        print_line(line)
    raise typer.Exit(result.exit_code)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write one self-contained HTML page about any runs."""
    from lvmmed.report import build_report

    written = build_report(runs, out, title=title)
    print_line(f"report: {written}")


@recipes_app.command("list")
def recipes_list() -> None:
    """List the recipes."""
    from lvmmed.recipes.pretraining_recipes import RECIPES

    rows = [(recipe.name, recipe.summary) for recipe in RECIPES.values()]
    print_table("recipes", ("name", "summary"), rows)


@recipes_app.command("show")
def recipes_show(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")], overrides: Overrides = None
) -> None:
    """Print a recipe, every field resolved, as YAML."""
    from lvmmed.recipes.pretraining_recipes import refuse_two_lengths, resolve_config

    refuse_two_lengths(overrides or [])
    sys.stdout.write(resolve_config(name, overrides or [], store=None).to_yaml())


def _version(value: bool) -> bool:
    if value:
        print_line(f"lvmmed {lvmmed.__version__}")
        raise typer.Exit
    return value


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version.")
    ] = False,
) -> None:
    """Options of every command."""
    del debug, version  # --debug is read from the arguments by `main`


def _fail(message: str, *, exit_code: int) -> int:
    """Print one line on standard error, never a traceback."""
    sys.stderr.write("lvmmed: " + " ".join(message.split()) + "\n")
    return exit_code


def _has_run(words: list[str]) -> bool:
    """Whether the folder named with --out holds a run that can be resumed."""
    named = [after for word, after in pairwise(words) if word == "--out"]
    named += [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
    return any((Path(name) / "config.yaml").is_file() for name in named)


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: words after the program's name.

    Returns:
        0 when it worked, 2 for what the user can mend, 130 when interrupted, 1 otherwise.
    """
    is_debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(args=words, prog_name="lvmmed", standalone_mode=False)
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        message = error.format_message()  # empty after a help page
        return _fail(message, exit_code=2) if message else 2
    except InputError as error:
        if is_debug:
            raise
        return _fail(str(error), exit_code=2)
    except (typer.Abort, KeyboardInterrupt):
        again = GOES_ON.get(" ".join(words[:1]))
        if words[:1] == ["pretrain"] and not _has_run(words):
            again = None
        text = f"interrupted; {again} goes on" if again else "interrupted"
        return _fail(text, exit_code=INTERRUPTED)
    except Exception as error:
        if is_debug:
            raise
        if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
            text = (
                f"{error.filename or 'a file'}: cannot be read or written ({error.strerror}); see "
                "to the disk or the permissions, then run it again"
            )
            return _fail(text, exit_code=2)
        again = shlex.join(["lvmmed", "--debug", *words])
        text = f"internal error, please report it: {type(error).__name__}: {error}; see {again}"
        return _fail(text, exit_code=1)


def main() -> None:
    """Entry point of the `lvmmed` program."""
    sys.exit(run_command(sys.argv[1:]))
