PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo experiments gpu test soak lint types

demo: .venv/installed  ## teach the toy model a new cup; pictures and report in out/demo
	$(BIN)/python -m trainer demo --folder out/demo

experiments: .venv/installed  ## try the article's findings again; about an hour on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.article

gpu: .venv/installed  ## test and measure training on an NVIDIA card, into docs/gpu.md
	$(BIN)/python -m benchmarks.gpu

test: .venv/installed  ## the tests, one worker and thread per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

soak: .venv/installed  ## kill RUNS runs at random moments, resume them, compare the results
	$(BIN)/python -m benchmarks.soak --runs $(or $(RUNS),100)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

.venv/installed: pyproject.toml requirements/development.txt requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c requirements/constraints.txt -r requirements/development.txt -r requirements.txt
	touch $@
