"""Write the reference tables of docs/reference from the code; a test checks that they agree.

Run `python docs/generate.py` after a change of methods, recipes or configuration.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from lvmmed.config import DataConfig, LogConfig, ModelConfig, TrainConfig, ViewsConfig
from lvmmed.data.salt import SALT_VARIABLE
from lvmmed.matching import cuda_graph, search_choice
from lvmmed.recipes.benchmark_suite import Suite, SuiteInitialisation, SuiteMethod, SuiteTask
from lvmmed.recipes.finetuning import FinetuneSettings
from lvmmed.recipes.pretraining_recipes import RECIPES
from lvmmed.recipes.probing import ProbeSettings
from lvmmed.recipes.segmentation_probing import SegmentationProbeSettings
from lvmmed.ssl.method import Method
from lvmmed.ssl.table import METHODS

REFERENCE = Path(__file__).parent / "reference"
GROUPS = {
    "data": DataConfig,
    "views": ViewsConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "log": LogConfig,
}
JUDGING = {
    "Probing": ("lvmmed probe ... --set field=value", ProbeSettings),
    "Probing with masks": (
        "lvmmed probe --task segmentation ... --set field=value",
        SegmentationProbeSettings,
    ),
    "Fine-tuning": ("lvmmed finetune ... --set field=value", FinetuneSettings),
}
"""Title -> (command, its settings)."""
SUITE = {
    "Suite": Suite,
    "Entry of `methods`": SuiteMethod,
    "Entry of `initialisations`": SuiteInitialisation,
    "Entry of `tasks`": SuiteTask,
}
"""Title -> a part of a benchmark's suite."""
VARIABLES = {
    SALT_VARIABLE: (
        "a private file of the user",
        "Salt of the keys that stand for patients; set the same to compare patients across "
        "machines.",
    ),
    cuda_graph.SWITCH: (
        "`1`",
        "On an NVIDIA GPU training records its matching solver as a CUDA graph; `0` launches it "
        "kernel by kernel.",
    ),
    search_choice.SWITCH: (
        "`0`",
        "`1` lets a Triton kernel search for matchings on an NVIDIA GPU; it is checked first.",
    ),
}
"""Variables of the environment: name -> (default, meaning)."""


def fields_table(settings: type[BaseModel], prefix: str) -> list[str]:
    """List the fields of a settings class as a Markdown table."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{prefix}{name}` | {default} | {meaning} |")
    return lines


def differences(method: Callable[..., Method]) -> str:
    """Say in what a method differs from its paper, as the docstring of its class does."""
    text = inspect.getdoc(method) or ""
    found = re.search(r"^Differs from the papers? (.+?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{method}: its docstring has no paragraph 'Differs from the paper in'")
    return "Differs from the paper " + re.sub(r"^\(.+?\) ", "", " ".join(found[1].split()))


def methods_page() -> str:
    """Methods, their sources, differences and configuration."""
    lines = ["# Methods", "", "| method | idea | source |", "|---|---|---|"]
    lines += [f"| `{name}` | {row.summary} | {row.source} |" for name, row in METHODS.items()]
    for name, row in METHODS.items():
        lines += ["", f"## {name}", "", f"Source: {row.source}.", "", differences(row.build), ""]
        lines += fields_table(row.config, "method.")
        lines += ["", f"Where features collapse: {row.advice.collapse}."]
        if row.advice.chance:
            lines += ["", f"Where it does not learn: {row.advice.chance}."]
    return "\n".join(lines) + "\n"


def recipes_page() -> str:
    """Recipes and what they set."""
    lines = ["# Recipes", "", "| recipe | what it is |", "|---|---|"]
    lines += [f"| `{recipe.name}` | {recipe.summary} |" for recipe in RECIPES.values()]
    lines += ["", "`lvmmed recipes show NAME` prints one with every field resolved."]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Groups of a pre-training run, settings of judging, suites, variables of the environment."""
    lines = ["# Configuration", ""]
    lines += ["Override a field of pre-training with `--set group.field=value`.", ""]
    lines.append(
        "The defaults below are those of the fields, and a recipe lays its own values over them "
        "(`train.batch_size`, `train.steps` or `train.epochs`, and others), so they are not what "
        "a run has. `lvmmed recipes show lvm-med` prints what that recipe runs with."
    )
    for name, settings in GROUPS.items():
        lines += ["", f"## {name}", "", *fields_table(settings, f"{name}.")]
    lines += ["", "The group `method` is listed with [the methods](methods.md)."]
    for title, (command, settings) in JUDGING.items():
        lines += ["", f"## {title}", "", f"`{command}`", "", *fields_table(settings, "")]
    lines += ["", "## Suites of benchmarks", "", "Fields of the YAML file of `lvmmed benchmark`."]
    for title, settings in SUITE.items():
        lines += ["", f"### {title}", "", *fields_table(settings, "")]
    lines += ["", "## Environment", "", "| variable | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {default} | {text} |" for name, (default, text) in VARIABLES.items()]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Every generated page: file name -> text."""
    return {
        "methods.md": methods_page(),
        "recipes.md": recipes_page(),
        "configuration.md": configuration_page(),
    }


if __name__ == "__main__":
    for file_name, text in pages().items():
        (REFERENCE / file_name).write_text(text, encoding="utf-8")
