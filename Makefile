# Needs Python 3.11 or newer and, the first time, a network: `make demo` on a fresh clone makes .venv, installs, and runs.
PYTHON ?= python3

BIN = .venv/bin
INSTALLED = .venv/.installed

.PHONY: help demo test bench lint docs wheel clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

demo: $(INSTALLED) ## show on one page, demo/index.html, what the shipped models do
	$(BIN)/python -m homework.demo

test: $(INSTALLED) ## run every test
	$(BIN)/python -m pytest tests -n auto --dist loadfile

bench: $(INSTALLED) ## measure feeding, training, tokenizing, sampling and compressing, against baselines
	$(BIN)/python -m bench

lint: $(INSTALLED) ## check style, complexity and types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED) ## build the documentation: open site/index.html
	$(BIN)/mkdocs build --strict

wheel: $(INSTALLED) ## build the wheel in dist/
	$(BIN)/python -m pip wheel . --no-deps --wheel-dir dist

clean: ## remove caches and what demo, docs and wheel make; data, checkpoints, logs and .venv stay
	rm -rf build demo dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find bench grader homework tests -name __pycache__ -type d -prune -exec rm -rf {} +

# the stamp comes last, so that an installation that failed halfway is repeated
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; install one, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt -e '.[dev,docs]'
	@touch $@
