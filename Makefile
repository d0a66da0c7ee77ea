# Everything needs only python3 (3.11 or later) with venv; `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export MPLBACKEND := Agg
QUICK := not slow and not dist and not gpu

.PHONY: help setup demo test test-fast check format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP)  ## create .venv with everything installed

demo: $(STAMP)  ## the whole main job on embedded data; ends with demo/report.html
	$(BIN)/lvmmed demo --out demo

test: check  ## all checks and all tests, the slow ones too
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=15

test-fast: $(STAMP)  ## the quick tests only
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "$(QUICK)"

check: $(STAMP)  ## ruff, pydoclint, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint --quiet src
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make created
	rm -rf $(VENV) demo
