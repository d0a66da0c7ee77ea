"""The generated pages of the documentation agree with the code."""

import importlib.util
from pathlib import Path

import pytest

from lvmmed.ssl.table import METHODS

DOCS = Path(__file__).parents[1] / "docs"


def _generator():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["methods.md", "recipes.md", "configuration.md"])
def test_a_generated_page_is_up_to_date(name):
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == _generator().pages()[name], "run: python docs/generate.py"


def _section_of_method(name):
    page = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8")
    return page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_methods_names_the_source_of_each_and_in_what_it_differs(name):
    section = _section_of_method(name)
    assert f"Source: {METHODS[name].source}." in section
    (said,) = [line for line in section.splitlines() if line.startswith("Differs from the paper")]
    # the whole paragraph of the class, whose lines the page joins
    words = " ".join((METHODS[name].build.__doc__ or "").split())
    told = said.removeprefix("Differs from the paper in: ")
    assert len(told) > 60
    assert told in words


def test_a_method_that_does_not_say_in_what_it_differs_stops_the_pages():
    def silent():
        """Learn something."""

    with pytest.raises(ValueError, match="no paragraph 'Differs from the paper in'"):
        _generator().differences(silent)
