# The few commands; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART := quickstart
TESTS = -m "not long"

.PHONY: help setup quickstart test test-all lint bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready  ## put the environment into .venv

# bytecode is compiled once here: a Ray worker that has to compile torch and pandas takes ten seconds to start
.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[distill,test,bench,dev]'
	touch $@

quickstart: setup  ## make a sample archive, prune it, print the path of the report
	$(BIN)/python -m tests.recipes $(QUICKSTART) --tiles 2000 1>&2
	$(BIN)/curate prune archive.url=$(QUICKSTART)/archive references.url=$(QUICKSTART)/references workspace=$(QUICKSTART)/workspace catalog.thumbnails=1

test: setup  ## run the tests
	$(BIN)/python -m compileall -q curation jobs  # each Ray worker imports them; some machines cache no bytecode
	$(BIN)/python -m pytest -q -n 2 --no-loadscope-reorder --durations=20 $(TESTS)  # two files at a time: see tests/conftest.py

test-all: TESTS =
test-all: test  ## run the tests that take minutes each too

lint: setup  ## check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup  ## run every benchmark; each prints one JSON line last
	for name in catalog kmeans selection encoders storage driver_memory formats sampler materialize recurate distill; do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:  ## remove what quickstart made
	rm -rf $(QUICKSTART)
