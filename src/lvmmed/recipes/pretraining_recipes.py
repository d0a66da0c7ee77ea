"""The named recipes of pre-training, and how a recipe, a file and overrides become one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices

from lvmmed.config import (
    RunConfig,
    apply_overrides,
    build_config,
    did_you_mean,
    merge,
    read_yaml,
)
from lvmmed.ssl.lvm_med import PAPER_LITERAL
from lvmmed.ssl.table import METHODS
from lvmmed.types import InputError

YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A complete configuration with a name.

    Attributes:
        name: what `--recipe` takes.
        summary: one line for lists.
        values: groups and fields; what is absent has the default of its group.
    """

    name: str
    summary: str
    values: Mapping[str, Any]


def lvm_med() -> Recipe:
    """LVM-Med as it learns: the default.

    Second-order graph matching with centred projections, a residual around message passing, edge
    terms scaled by 1/k, a margin against the true match and small noise (fields of `method`, each
    with its reason). ResNet-50 from scratch at 224 px, 512 images a step, 100 passes over the
    store, AdamW with 10 % warm-up and a cosine. Meant for one GPU with 40 GB or more; on a
    processor take model.backbone=resnet18, views.size=64 and train.batch_size=128 (about a
    step a second on two cores).
    """
    return Recipe(
        name="lvm-med",
        summary="second-order graph matching, with the changes that make it learn (default)",
        values={
            "model": {"backbone": "resnet50"},
            "method": {"name": "lvm-med"},
            "train": {
                "batch_size": 512,
                "epochs": 100,
                "optimizer": "adamw",
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
                "schedule": "cosine",
                "warmup_frac": 0.1,
            },
        },
    )


def paper_literal() -> Recipe:
    """LVM-Med as printed, for study and comparison; not tuned, and it may fail in public.

    Noise of scale 1, lambda 80, edges of weight 1, plain graph convolutions, no centring; Adam
    at 2e-3 without weight decay or warm-up, halved four times; 3200 images a step, 100 passes.
    Where the paper is silent this follows the readings of our reference page (moments of
    halving, crop scale, jitter of the authors' left-over transforms).

    Differs from the paper in: starts from random weights, as nothing is downloaded unasked (the
    paper's start is --set model.weights=timm:resnet50); a short last graph is matched too.
    """
    return Recipe(
        name="paper-literal",
        summary="LVM-Med as the paper prints it, for comparison; matching stays near chance",
        values={
            "views": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
            "model": {"backbone": "resnet50"},
            "method": {"name": "lvm-med", **PAPER_LITERAL},
            "train": {
                "batch_size": 3200,
                "epochs": 100,
                "optimizer": "adam",
                "learning_rate": 2e-3,
                "weight_decay": 0.0,
                "schedule": "halving",
                "warmup_frac": 0.0,
            },
        },
    )


def simclr() -> Recipe:
    """SimCLR under the views, encoder and budget of `lvm-med`: the first thing to compare with."""
    return Recipe(
        name="simclr",
        summary="contrastive learning with the same views and budget as lvm-med",
        values={
            "model": {"backbone": "resnet50"},
            "method": {"name": "simclr"},
            "train": lvm_med().values["train"],
        },
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (lvm_med(), paper_literal(), simclr())
}
"""Recipe name -> recipe; adding one is a function above and its call here."""


def resolve_config(
    recipe: str, overrides: Sequence[str] = (), *, store: str | None = None
) -> RunConfig:
    """Turn a recipe, or a YAML file, and overrides into a complete configuration.

    A file that names a known `recipe` lies over that recipe, so it need only hold what differs; a
    run's own config.yaml is such a file. Giving one of train.steps and train.epochs takes the
    other away, and another method.name takes away the fields of the recipe's method.

    Args:
        recipe: name of a recipe, or path of a YAML file.
        overrides: texts such as "train.steps=200", the last one wins.
        store: folder of the image store; None keeps what the recipe says.

    Returns:
        A checked configuration. Unknown recipes, groups, fields and values out of range are
        refused with an InputError that names them.
    """
    values = _recipe_values(recipe)
    for text in overrides:
        values = _lay_over(values, apply_overrides({}, [text]))
    if store is not None:
        values = merge(values, {"data": {"store": store}})
    return build_config(values, methods={name: row.config for name, row in METHODS.items()})


def _recipe_values(recipe: str) -> dict[str, Any]:
    if recipe in RECIPES:
        return {"recipe": recipe, **RECIPES[recipe].values}
    if not (recipe.endswith(YAML_SUFFIXES) or Path(recipe).is_file()):
        raise InputError(
            f"recipe: got {recipe!r}; {did_you_mean(recipe, list(RECIPES))} (or give a .yaml file)"
        )
    values = _own_names(read_yaml(Path(recipe)))
    base = values.get("recipe")
    if isinstance(base, str) and base in RECIPES:
        return _lay_over({"recipe": base, **RECIPES[base].values}, values)
    return values


def _lay_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merge, with what excludes each other: length in steps or epochs, fields of two methods."""
    top = _own_names(top)
    base = merge(base, {})
    train, method = top.get("train"), top.get("method")
    if isinstance(train, Mapping) and isinstance(base.get("train"), dict):
        for given, other in (("steps", "epochs"), ("epochs", "steps")):
            if train.get(given) is not None and train.get(other) is None:
                base["train"].pop(other, None)
    if isinstance(method, Mapping) and isinstance(base.get("method"), dict):
        name = method.get("name")
        if name is not None and name != base["method"].get("name"):
            base["method"] = {}
    return merge(base, top)


def _own_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace other names that fields of a method go by ("lambda") by their own ("lambda_")."""
    method = values.get("method")
    if not isinstance(method, Mapping):
        return dict(values)
    names = {
        alias: field
        for row in METHODS.values()
        for field, info in row.config.model_fields.items()
        if isinstance(info.validation_alias, AliasChoices)
        for alias in info.validation_alias.choices
        if isinstance(alias, str)
    }
    return {**values, "method": {names.get(key, key): value for key, value in method.items()}}
