# make demo   everything at once: install, build the repository, ask a real Triton about a few texts
# make test   the test suite, with a real Triton in it; EXHAUSTIVE=1 with every crash point; TESTS=tests/unit for a part
# make bench  eight tasks beside single-task models, on this machine: about half an hour; PEERS=python of their environment
# make speed  a small part of it, that fails when a ratio is lost
# make lint   formatting, types, import contracts
# make docs   the documentation site, in site/; a warning or a dead link fails
# make clean  removes what make made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Byte code is made when a module is first used, not for all of torch at once.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo test bench speed lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.serving
	$(BIN)/build-repo --tasks all
	$(BIN)/python examples/demo.py

test: $(VENV)/.developing
	$(BIN)/python -m pytest -n 2 -m "$(if $(EXHAUSTIVE),,not exhaustive)" $(TESTS)

bench: $(VENV)/.developing
	$(BIN)/python -m benchmarks.compare --output docs/results/performance $(if $(PEERS),--peers $(PEERS))

speed: $(VENV)/.developing
	$(BIN)/python -m benchmarks.speed

lint: $(VENV)/.developing
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: $(VENV)/.documenting
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 13) else f"OneTrunk needs Python 3.10 to 3.12, and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serving: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[builder,server,cpu]'
	@touch $@

$(VENV)/.developing: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[builder,server,cpu,bench,dev]'
	@touch $(VENV)/.serving $@

$(VENV)/.documenting: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) dist site
	git clean -fdXq model_repository
