# Twelve words. Everything runs in .venv, made by `make setup` from pyproject.toml and remade when that file changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo models test test-fast check docs bench bench-quick survival damage clean

# Tests start hundreds of processes: each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/anomaly demo

models: setup
	$(BIN)/anomaly models --make

# Two workers, whose shared films and runs are their own, with one thread of torch each: half the time on two cores.
test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

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

# Two minutes: ratios beside those recorded last on such a machine; a regression ends it with status 1.
bench-quick: setup
	$(BIN)/python -m benchmarks.quick

# Kills and failing system calls, verb by verb.
survival: setup
	$(BIN)/python -m benchmarks.survival

# One bit flipped or the end cut off in every kind of file: status 1 where nobody notices.
damage: setup
	$(BIN)/python -m benchmarks.damage

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
