PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help demo test browser lint javascript types pages soak faults gpu experiments

help:  ## list all targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed  ## train the included model on a new cup; images and report go to out/demo
	$(BIN)/python -m trainer demo --folder out/demo

test: .venv/installed  ## run the tests, one worker and thread per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# COMFYUI_PATH, COMFYUI_PYTHON: as in CONTRIBUTING.md.
browser: .venv/installed  ## test the page in Chromium, in the ComfyUI of COMFYUI_PATH
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c requirements/constraints.txt -r requirements/browser.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/nodes/browser

lint: .venv/installed  ## check formatting and lint rules, those of web/ if Node.js is installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@if ! command -v npm > /dev/null; then echo "Node.js is not installed, so web/ is not checked."; \
	elif $(MAKE) --no-print-directory .node/installed; then $(MAKE) --no-print-directory javascript; \
	else echo "What checks web/ cannot be fetched, so web/ is not checked."; fi

javascript: .node/installed  ## check types and lint rules of web/
	.node/node_modules/.bin/tsc --project requirements/web
	.node/node_modules/.bin/eslint --config .node/eslint.config.mjs web

# ComfyUI has a module called nodes, and ours import the trainer relative to the pack: mypy sees the
# pack through a link, as the package "pack".
types: .venv/installed  ## check types with mypy
	$(BIN)/mypy
	mkdir -p .mypy_cache && ln -sfn .. .mypy_cache/pack
	MYPYPATH=.mypy_cache $(BIN)/mypy -p pack.nodes

pages: .venv/installed  ## write the tables of the nodes' help pages, from tooltips and locales
	$(BIN)/python -m tests.help_pages

soak: .venv/installed  ## kill RUNS runs (100) in each of their phases, resume them, compare the weights; LEAN=1: with the leanest settings; METHOD=lora, textual-inversion
	$(BIN)/python -m benchmarks.soak --runs $(or $(RUNS),100) $(if $(LEAN),--lean) $(if $(METHOD),--method $(METHOD))

faults: .venv/installed  ## fail every file operation of small runs and cut the power anywhere, MINUTES (30) long, into docs/faults.md; needs Linux and gcc
	$(BIN)/python -m benchmarks.faults --minutes $(or $(MINUTES),30)

gpu: .venv/installed  ## test and measure training on an NVIDIA GPU, into docs/gpu.md
	$(BIN)/python -m benchmarks.gpu

experiments: .venv/installed  ## repeat the source article's findings; about an hour on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.article

.venv/installed: pyproject.toml requirements.txt requirements-diffusers.txt requirements/development.txt requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c requirements/constraints.txt -r requirements/development.txt -r requirements.txt
	touch $@

.node/installed: requirements/web/package.json requirements/web/eslint.config.mjs
	mkdir -p .node && cp $^ .node
	npm install --prefix .node --no-package-lock --no-audit --no-fund --silent
	touch $@
