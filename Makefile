# Needs Python 3.11 or newer and, the first time, a network: `make demo` on a fresh clone makes .venv, installs, and runs.
PYTHON ?= python3
DEVELOPMENT = pytest==9.2.0 pytest-xdist==3.8.0 hypothesis==6.170.15 ruff==0.17.6 pillow-jxl-plugin==1.3.8

BIN = .venv/bin
INSTALLED = .venv/.installed

.PHONY: help demo test bench lint
.DEFAULT_GOAL := help

help: ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

demo: $(INSTALLED) ## show on one page, demo/index.html, what the shipped models do
	$(BIN)/python -m homework.demo

test: $(INSTALLED) ## run every test
	$(BIN)/python -m pytest tests -n auto --dist loadfile

bench: $(INSTALLED) ## measure feeding, training, tokenizing, sampling and compressing, beside the plain ways
	$(BIN)/python -m bench

lint: $(INSTALLED) ## check the code's style
	$(BIN)/ruff check .

# the stamp comes last, so that an installation that failed halfway is taken up again
$(INSTALLED): requirements.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; install one, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt $(DEVELOPMENT)
	@touch $@
