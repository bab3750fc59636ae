# Everything runs in .venv, pinned by constraints.txt. `make` alone says what there is.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup look demo test matrix lint docs dist release bench soak clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: .venv/ready  ## the environment .venv, with all that tests, docs and a release need: about two minutes
	@echo 'Ready. Type `source .venv/bin/activate` once, and the command is `mmneuron`; without it, .venv/bin/mmneuron.'

# torch first and exactly pinned: looser requests may take a build of several gigabytes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/ready

look: setup  ## the first pictures of neurons, in half a minute after setup: runs/look/index.html
	$(BIN)/mmneuron demo --quick --out runs/look
	@echo "The page: file://$(CURDIR)/runs/look/index.html"

demo: setup  ## the whole demo on three embedded models, about three minutes: runs/demo/index.html
	$(BIN)/mmneuron demo --out runs/demo

# Two processes, a file in one of them, in the order of tests/conftest.py; each computes with one thread.
test: setup  ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# About two minutes each; a table at the end.
matrix: setup  ## the core tests on every supported transformers, in every Python that has torch
	.ci/matrix

lint: setup  ## style, rooms and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

dist: setup  ## a source archive and a wheel in dist/, checked against the tree
	.ci/dist

release: setup  ## dist, then the wheel tried in an environment of its own; publishes nothing
	.ci/release

# Every fault three times each, about six minutes; writes benchmarks/soak-DATE.log.
soak: setup  ## the faults of a live NDIF server
	.ci/with-server -- $(BIN)/python benchmarks/soak.py --repeat 3

# TransformerLens in an environment of its own: it brings much, and would install torchvision.
.venv-bridge/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bridge
	.venv-bridge/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv-bridge/bin/python -m pip install --quiet -c constraints.txt -e . transformer-lens==4.3.0
	touch .venv-bridge/ready

# About 30 minutes on two idle cores; writes benchmarks/results-DATE.md.
# Parts alone: .venv/bin/python benchmarks/run.py --help
# Beside it, and not part of it: benchmarks/attribution.py (gradients, top activations) and benchmarks/many_graphs.py
# (a heat map, conditions of a generation), each against plain hooks; see benchmarks/language-2026-11-26.md.
bench: setup .venv-bridge/ready  ## counting against the published loop
	$(BIN)/python benchmarks/run.py

# The documentation as site/index.html: any warning, and any link that leads nowhere, is an error. Needs no network.
docs: setup  ## the documentation: site/index.html
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## removes environments, runs and what was built
	rm -rf .venv .venv-bridge runs build dist site
