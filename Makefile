# `make demo`, `make test` and `make docs` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
TORCH_BIN := .venv-torch/bin
AOT_BIN := .venv-aot/bin
CLOUD_BIN := .venv-cloud/bin
VERSITYGW := github.com/versity/versitygw/cmd/versitygw@v1.8.0
AZURITE := azurite@3.35.0
PRISM := github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0

.PHONY: demo ablation test test-slow test-torch test-aot test-cloud test-flink test-browser check docs install models

demo: .venv/installed
	$(BIN)/python -m tools.demo --output demo

# The papers' effects on drawn scenes: 30 trainings, hours (docs/ablation.md).
ablation: .venv/installed
	$(BIN)/python -m tools.ablation.run --output ablation
	$(BIN)/python -m tools.ablation.table --results ablation/results --plot ablation/effects.svg

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# The Hugging Face models in PyTorch are the oracle of these.
test-torch: .venv-torch/installed
	$(TORCH_BIN)/python -m pytest -m torch -n auto --dist loadfile

# Compiles train steps for TPUs, with the TPU compiler and without TPUs; takes an hour on
# two cores.
test-aot: .venv-aot/installed
	$(AOT_BIN)/python -m pytest -m aot

# Object stores and a Prism of this machine, and Dataflow's graph of a job that is not
# submitted.
test-cloud: .venv-cloud/installed .engines/installed
	$(CLOUD_BIN)/python -m pytest -m cloud -rs

# Needs Java and JOB_SERVER, the jar of Beam's Flink job server; says what is missing.
test-flink: .venv/installed
	$(BIN)/python -m pytest -m flink -rs

# Needs Chromium: `apt-get install chromium`.
test-browser: .venv/installed
	$(BIN)/python -m pytest -m browser

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A broken link or anchor is an error.
docs: .venv/docs-installed
	$(BIN)/python -m mkdocs build
	@echo build/site/index.html

install: .venv/installed

# Trains the two checkpoints of the demo again; takes over an hour on two cores.
models: .venv/installed
	$(BIN)/python -m tools.train_tiny_models --output curation_configs/checkpoints

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/docs-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv-cloud/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv-cloud
	$(CLOUD_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,cloud-tests]'
	touch $@

# Servers of object stores, and Beam's Prism, for tests. One that is missing is looked for
# at every call.
.engines/installed: Makefile $(wildcard tests/support/gcs_server/*)
	mkdir -p .engines
	@if command -v go >/dev/null; then \
	    GOBIN=$(CURDIR)/.engines go install $(VERSITYGW) && \
	    GOBIN=$(CURDIR)/.engines go install $(PRISM) && \
	    cd tests/support/gcs_server && go build -o $(CURDIR)/.engines/gcs-server .; \
	else echo "Go is missing: no servers, so tests of s3://, gs:// and Prism are skipped"; fi
	@if command -v npm >/dev/null; then \
	    npm install --silent --prefix .engines $(AZURITE); \
	else echo "npm is missing: no Azurite, so tests of az:// are skipped"; fi
	@if command -v go >/dev/null && command -v npm >/dev/null; then touch $@; fi

.venv-aot/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv-aot
	$(AOT_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,aot]'
	touch $@

.venv-torch/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv-torch
	$(TORCH_BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(TORCH_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,torch]'
	touch $@
