"""The named recipes of pre-training, and how a recipe, a file and overrides become one run."""

from collections.abc import Mapping, Sequence
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
from lvmmed.recipes.comparison_recipes import comparisons
from lvmmed.recipes.graph_matching_recipes import lvm_med, lvm_med_regions, paper_literal
from lvmmed.recipes.recipe import Recipe
from lvmmed.ssl.table import METHODS
from lvmmed.types import InputError

YAML_SUFFIXES = (".yaml", ".yml")


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        lvm_med(),
        lvm_med_regions(),
        paper_literal(),
        *comparisons(lvm_med().values["train"]),
    )
}
"""Recipe name -> recipe; adding one is a function and its call here or in `comparisons`."""


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
    _refuse_unknown_base(recipe, values)
    return build_config(values, methods={name: row.config for name, row in METHODS.items()})


def refuse_two_lengths(overrides: Sequence[str]) -> None:
    """Refuse a length in steps and one in epochs side by side, of which one would be ignored.

    Args:
        overrides: texts of one command, such as "train.steps=200".

    Raises:
        InputError: both are given.
    """
    train = apply_overrides({}, list(overrides)).get("train")
    if isinstance(train, Mapping) and None not in (train.get("steps"), train.get("epochs")):
        raise InputError(
            f"train.steps and train.epochs: got {train['steps']} and {train['epochs']}, which "
            "exclude each other; give one of them"
        )


def _recipe_values(recipe: str) -> dict[str, Any]:
    if recipe in RECIPES:
        return {"recipe": recipe, **RECIPES[recipe].values}
    if not (recipe.endswith(YAML_SUFFIXES) or _is_file(Path(recipe))):
        raise InputError(
            f"recipe: got {recipe!r}; {did_you_mean(recipe, list(RECIPES))} (or give a .yaml file)"
        )
    values = _own_names(read_yaml(Path(recipe)))
    base = values.get("recipe")
    if isinstance(base, str) and base in RECIPES:
        return _lay_over({"recipe": base, **RECIPES[base].values}, values)
    return values


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _refuse_unknown_base(recipe: str, values: Mapping[str, Any]) -> None:
    """Refuse a file that lacks what only a recipe would give, where it names one that is unknown.

    A complete file may name any recipe: that of a run may have gone since.
    """
    base, method = values.get("recipe", "custom"), values.get("method")
    is_complete = "train" in values and isinstance(method, Mapping) and "name" in method
    if base not in ["custom", *RECIPES] and not is_complete:
        raise InputError(
            f"{recipe}: recipe: got {base!r}; {did_you_mean(str(base), list(RECIPES))} (or write "
            "method.name and train into the file)"
        )


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
