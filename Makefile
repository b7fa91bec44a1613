# make demo   everything at once: install, build the repository, ask a real Triton about a few texts
# make test   the test suite, with a real Triton in it; EXHAUSTIVE=1 with every crash point; TESTS=tests/unit for a part
# make bench  eight tasks beside single-task models, on this machine: about half an hour; PEERS=python of their environment
# make speed  a small part of it, that fails when a ratio is lost
# make lint   formatting, types, import contracts
# make docs   the documentation site, in site/; a warning or a dead link fails
# make manifests  helm, kubectl and schemas, with which the tests of deploy/ check what they otherwise skip
# make lock   resolves all versions anew (locks/make.py); UPGRADE=--upgrade takes the newest
# make sbom   dist/sbom.json: what is installed to build and serve, with versions and licences, as CycloneDX; and
#             dist/sbom-front.json, -builder.json, -triton.json: what the images install, with hashes
# make audit  asks the advisory databases about every package in locks/; needs the network
# make clean  removes what make made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/tools
# Everything that is downloaded has a hash in locks/.
INSTALL := $(BIN)/python locks/install.py
export ORT_DISABLE_TELEMETRY := 1
# Installing makes no byte code (locks/install.py). Where none is written either, every process compiles all of torch,
# transformers and ONNX Runtime anew: a command takes three times as long to begin, a model of Triton five times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test bench speed lint docs manifests lock sbom audit clean
.DELETE_ON_ERROR:

demo:
	@$(PYTHON) examples/demo.py

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

manifests: $(VENV)/.manifests

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 13) else f"OneTrunk needs Python 3.10 to 3.12, and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serving: pyproject.toml $(wildcard locks/*) | $(BIN)/python
	$(INSTALL) serving
	@touch $@

$(VENV)/.developing: pyproject.toml $(wildcard locks/*) | $(BIN)/python
	$(INSTALL) serving developing
	@touch $(VENV)/.serving $@

$(VENV)/.documenting: pyproject.toml $(wildcard locks/*) | $(BIN)/python
	$(INSTALL) documenting
	@touch $@

$(VENV)/.manifests: $(wildcard locks/manifests.*) | $(BIN)/python
	$(BIN)/python locks/manifests.py
	@touch $@

# In an environment of their own, so that they are not part of what they describe.
$(TOOLS)/.installed: locks/auditing.txt | $(BIN)/python
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

lock: $(TOOLS)/.installed
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" $(BIN)/python locks/make.py $(UPGRADE)

sbom: $(VENV)/.serving $(TOOLS)/.installed
	@mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.json $(BIN)/python
	@for image in front:locks/front.txt builder:locks/serving.txt triton:deploy/triton/requirements.txt; do \
	  $(TOOLS)/bin/cyclonedx-py requirements --output-reproducible --of JSON \
	    -o dist/sbom-$${image%%:*}.json $${image#*:} || exit 1; \
	done

# --strict: a package that the database does not answer for has not been audited, and that is a failure.
audit: $(TOOLS)/.installed
	@for lock in torch cuda serving developing documenting auditing; do \
	  echo "locks/$$lock.txt"; \
	  $(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes -r locks/$$lock.txt || failed=1; \
	done; exit $${failed:-0}

clean:
	rm -rf $(VENV) dist site
	git clean -fdXq model_repository
