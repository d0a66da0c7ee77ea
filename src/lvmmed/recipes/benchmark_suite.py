"""What a benchmark compares: methods x initialisations x seeds, each judged on tasks.

A suite is a YAML file. Relative paths in it are looked for in the folder of data that the user
names, so that one file fits every machine, then in the folder of the file; whole paths and `~` are
taken as they are.
"""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from lvmmed.config import (
    SEEDS,
    Settings,
    apply_overrides,
    are_seeds,
    did_you_mean,
    read_yaml,
    validated,
)
from lvmmed.types import InputError

UNTRAINED = "untrained"
"""Name under which the weights that training starts from are judged."""
WATCH = "watch"
"""Field of a suite that names the images of the probe while methods train."""


class SuiteMethod(Settings):
    """One method of a suite."""

    name: str
    """Name in tables."""
    recipe: str
    """Recipe of pre-training."""
    overrides: tuple[str, ...] = ()
    """Fields to set, after those of the suite and of the initialisation."""


class SuiteInitialisation(Settings):
    """Where training starts from."""

    name: str
    """Name in tables, such as scratch."""
    backbone: str
    """Encoder, a name in timm."""
    weights: str = "random"
    """random, timm:NAME, or a weight file or run folder, a path as all of the suite's (or in the
    working folder)."""
    overrides: tuple[str, ...] = ()
    """Fields to set for every method that starts here."""
    methods: tuple[str, ...] = ()
    """Methods that start here; empty = all."""


class SuiteTask(Settings):
    """One task that encoders are judged on."""

    name: str
    """Name in tables."""
    kind: Literal["probe", "segmentation", "finetune"] = "probe"
    """Frozen kNN and linear probes, a linear probe of the map, or a fine-tuned linear head."""
    data: str
    """Labelled images: a folder or a list."""
    metrics: tuple[str, ...]
    """Scores to tabulate, such as linear.accuracy; the first one counts in ranks and tests."""
    shifted: tuple[str, ...] = ()
    """Test splits from another distribution (site, scanner); their columns stand apart."""
    size_px: int | None = Field(None, ge=16, le=1024)
    """Side of the images in pixels; none = the size of pre-training."""
    overrides: tuple[str, ...] = ()
    """Settings of the judging run, `field=value`."""


class Suite(Settings):
    """Everything that decides a benchmark."""

    name: str
    """Name of the suite."""
    summary: str
    """What it is for, how long it takes, what it needs."""
    phantoms: bool = False
    """Generate the images instead of reading them from a folder of data."""
    pretrain_on: tuple[str, ...]
    """Sources of the image store: folders, globs or lists."""
    store_size: int = Field(256, ge=16)
    """Short side of stored images in pixels."""
    overrides: tuple[str, ...] = ()
    """Fields of pre-training that all methods share (steps, batch, size of views)."""
    watch: str | None = None
    """Labelled images for a kNN probe while methods train (train and val alone), a path as all of
    the suite's; it changes no result, and a run that is done is not run again for it."""
    methods: tuple[SuiteMethod, ...]
    """Rows of the table."""
    initialisations: tuple[SuiteInitialisation, ...]
    """Where each method starts."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of pre-training; each is a run of its own."""
    finalist_seeds: tuple[int, ...] = ()
    """Further seeds for the best methods of each initialisation, chosen by val; empty = none."""
    finalists: int = Field(4, ge=1)
    """Methods that get them."""
    untrained: bool = True
    """Whether the weights that training starts from are judged as well."""
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the labels that probes are fitted on."""
    tasks: tuple[SuiteTask, ...]
    """Columns of the table."""
    reference: str | None = None
    """Method that the others are compared with by paired tests."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Peak learning rates to try beside the recipe's own, for every method and initialisation
    alike; empty = the recipe's own. The choice is made at the first seed, on val alone."""
    tune_on: tuple[str, ...] = ()
    """Tasks whose val scores choose the learning rate; empty = all of kind probe."""

    @model_validator(mode="after")
    def _check(self) -> "Suite":
        for kind in ("methods", "initialisations", "tasks"):
            names = [one.name for one in getattr(self, kind)]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{kind}: got {names}, need one or more, each with its own name")
        if not are_seeds(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}, need {SEEDS}")
        if not are_seeds((*self.seeds, *self.finalist_seeds)):
            raise ValueError(
                f"finalist_seeds: got {list(self.finalist_seeds)}, need {SEEDS} that are not "
                f"among seeds, {list(self.seeds)}"
            )
        methods = {one.name for one in self.methods}
        for start in self.initialisations:
            _check_known(f"initialisations.{start.name}.methods", start.methods, methods)
        _check_known("reference", [self.reference] if self.reference else [], methods)
        _check_known("tune_on", self.tune_on, {task.name for task in self.tasks})
        if self.learning_rates and not self.tuning_tasks:
            raise ValueError("tune_on: got none, and no task is a probe; name tasks to choose by")
        if UNTRAINED in methods:
            raise ValueError(f"methods: {UNTRAINED!r} is the name of weights before training")
        return self

    @property
    def tuning_tasks(self) -> tuple[str, ...]:
        """Tasks whose val scores choose the learning rate."""
        return self.tune_on or tuple(task.name for task in self.tasks if task.kind == "probe")

    def methods_of(self, start: SuiteInitialisation) -> tuple[SuiteMethod, ...]:
        """Methods that are trained from an initialisation, in the order of the suite."""
        chosen = start.methods or tuple(method.name for method in self.methods)
        return tuple(method for method in self.methods if method.name in chosen)


def _check_known(field: str, names: Sequence[str], allowed: set[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(f"{field}: got {name!r}; {did_you_mean(name, sorted(allowed))}")


def shipped_suites() -> dict[str, str]:
    """Names of the suites that come with the package -> their YAML text."""
    folder = resources.files("lvmmed.recipes") / "suites"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def suite_lines() -> list[str]:
    """Name the shipped suites, each with the first sentence of its summary."""
    found = {name: yaml.safe_load(text)["summary"] for name, text in shipped_suites().items()}
    return [f"{name}: {_first_sentence(summary)}" for name, summary in found.items()]


def _first_sentence(text: str) -> str:
    """Up to the first full stop or question mark that a capital letter follows."""
    return re.split(r"(?<=[.?!]) (?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]


def is_suite_file(name: str) -> bool:
    """Whether a suite is meant to be read from a file, and is not one of those shipped."""
    is_path = name.endswith((".yaml", ".yml")) or Path(name).expanduser().is_file()
    return name not in shipped_suites() and is_path


def load_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite by its name or from a YAML file.

    Args:
        name: a shipped suite, or the path of a YAML file.
        overrides: `field=value` texts laid over it.

    Returns:
        The checked suite.

    Raises:
        InputError: no such suite or file, an unknown field or a value out of range.
    """
    shipped = shipped_suites()
    values: dict[str, Any]
    if name in shipped:
        values = yaml.safe_load(shipped[name])
    elif is_suite_file(name):
        values = read_yaml(Path(name).expanduser())
    else:
        hint = did_you_mean(name, list(shipped))
        raise InputError(
            f"benchmark: got {name!r}; {hint} (or give a .yaml file; `lvmmed benchmark --help` "
            "says what the suites are for)"
        )
    return validated(Suite, apply_overrides(values, overrides))
