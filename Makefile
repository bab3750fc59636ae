# Everything runs in .venv, pinned by constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup demo test matrix lint bench soak clean

setup: .venv/ready

# torch first and exactly pinned: looser requests may take a build of several gigabytes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/ready

demo: setup
	$(BIN)/mmneuron demo --out runs/demo

# Two processes, a file in one of them, in the order of tests/conftest.py; each computes with one thread.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The core tests on every supported transformers, in every Python with torch, about two minutes each; a table at the end.
matrix: setup
	.ci/matrix

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Every fault of a live NDIF server, three times each, about six minutes; writes benchmarks/soak-DATE.log.
soak: setup
	.ci/with-server -- $(BIN)/python benchmarks/soak.py --repeat 3

# TransformerLens in an environment of its own: it brings much, and would install torchvision.
.venv-bridge/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bridge
	.venv-bridge/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv-bridge/bin/python -m pip install --quiet -c constraints.txt -e . transformer-lens==4.3.0
	touch .venv-bridge/ready

# Counting against the published loop, about 30 minutes on two idle cores; writes benchmarks/results-DATE.md.
# Parts alone: .venv/bin/python benchmarks/run.py --help
# Beside it, and not part of it: benchmarks/attribution.py (gradients, top activations) and benchmarks/many_graphs.py
# (a heat map, conditions of a generation), each against plain hooks; see benchmarks/language-2026-11-26.md.
bench: setup .venv-bridge/ready
	$(BIN)/python benchmarks/run.py

# The documentation as site/index.html: any warning, and any link that leads nowhere, is an error. Needs no network.
.PHONY: docs
docs: setup
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-bridge runs build dist site
