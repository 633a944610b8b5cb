PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo experiments gpu test soak lint types pages

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

# ComfyUI has a module called nodes, and ours import the trainer relative to the pack: mypy sees the
# pack through a link, as the package "pack".
types: .venv/installed  ## check types with mypy
	$(BIN)/mypy
	mkdir -p .mypy_cache && ln -sfn .. .mypy_cache/pack
	MYPYPATH=.mypy_cache $(BIN)/mypy -p pack.nodes

pages: .venv/installed  ## write the tables of the nodes' help pages, from tooltips and locales
	$(BIN)/python -m tests.help_pages

.venv/installed: pyproject.toml requirements/development.txt requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c requirements/constraints.txt -r requirements/development.txt -r requirements.txt
	touch $@
