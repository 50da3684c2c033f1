# `make demo` and `make test` install everything automatically; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest faults check format docs bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

install: $(READY) ## set up .venv with the tested versions

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "beyondpixel needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (PyTorch and other packages: a few minutes, about 6 GB) ..."
	@if command -v uv > /dev/null; then \
		uv venv --quiet --clear --seed --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(VENV) --constraint requirements.lock --editable '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'; \
	fi
	@touch $@

demo: $(READY) ## train CE, BCE and RMI on generated scenes and compare them (5 to 20 minutes on 2 cores)
	@$(BIN)/beyondpixel demo

test: $(READY) ## run the whole test suite, with one process per core
	@$(BIN)/python -m pytest -n auto --dist loadfile

test-oldest: $(READY) ## run the fast tests with the oldest allowed versions, in .venv-oldest
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest
	@$(BIN)/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable '.[dev]'
	@.venv-oldest/bin/python -m pytest -m "not slow"

faults: $(READY) ## inject real faults and write the results to docs/faults.md (15 minutes on 2 cores)
	@$(BIN)/python tests/faults.py

# mypy sees the package as a user's project would: installed, not as a folder of this checkout
check: $(READY) docs ## check format, lint, types and documentation
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@rm -rf build/typecheck
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target build/typecheck .
	@MYPYPATH=build/typecheck $(BIN)/mypy -p beyondpixel

format: $(READY) ## format, and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(READY) ## build the documentation in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(READY) ## measure speed and memory, and write benchmarks/results
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove .venv and build output; runs in outputs/ are kept
	rm -rf $(VENV) .venv-oldest build *.egg-info
