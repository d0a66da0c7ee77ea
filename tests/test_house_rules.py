"""Rules of the house that no other tool checks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "src" / "lvmmed").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
TORCH_FREE = (
    "lvmmed.types",
    "lvmmed.config",
    "lvmmed.report",
    "lvmmed.evaluation.classification",
    "lvmmed.evaluation.segmentation",
    "lvmmed.evaluation.statistics",
    "lvmmed.data.readers",
    "lvmmed.data.intensity",
    "lvmmed.data.slices",
)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT / "src"))


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    start = first.end_lineno if has_docstring else first.lineno - 1
    return (function.end_lineno or 0) - (start or 0)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_file_has_a_docstring_and_fits_its_limits(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _body_lines(node) <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_shape_annotations_stay_visible_to_the_runtime_checker(path):
    assert "from __future__ import annotations" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_module_meant_for_light_machines_does_not_load_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_method_has_a_test_a_recipe_and_a_docs_row():
    from lvmmed.recipes.pretraining_recipes import RECIPES
    from lvmmed.ssl.table import METHODS

    docs = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    used = {recipe.values["method"]["name"] for recipe in RECIPES.values()}
    for name in METHODS:
        file = name.replace("-", "_")
        assert (ROOT / "tests" / "ssl" / f"test_{file}.py").is_file(), name
        assert name in used
        assert f"`{name}`" in docs
