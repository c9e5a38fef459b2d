# Ten words. Everything runs in .venv, made by `make setup` from pyproject.toml and remade when that file changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo models test test-fast check docs bench damage clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/anomaly demo

models: setup
	$(BIN)/anomaly models --make

test: setup check
	$(BIN)/python -m pytest

# What needs no training, no browser and no drawn films: under a minute on two cores.
FAST := annotations architecture atypicality blocks charts choice classification comparison gradcam heatmap metrics original polarity \
	preprocessing_imports project readers recipe sources steps tables

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(FAST:%=tests/test_%.py) anomaly preprocessing

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive anomaly preprocessing

# The pages of docs/ as a site; a broken link or heading ends it. (The switch turns off an advertisement.)
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

bench: setup
	$(BIN)/python -m benchmarks

# One bit flipped or the end cut off in every kind of file: five minutes, and status 1 where nobody notices.
damage: setup
	$(BIN)/python -m benchmarks.damage

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
