# Needs Python 3.11 or newer and, the first time, a network: `make demo` on a fresh clone makes .venv, installs, and runs.
PYTHON ?= python3

BIN = .venv/bin
INSTALLED = .venv/.installed

.PHONY: help first-look demo studio test bench lint docs notebooks wheel clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

# $(call step,what it does,a command's arguments): prints both, and runs the command in first_look/
define step
	@printf '\n%s\n    python -m homework.%s\n' "$(1)" "$(2)"
	@cd first_look && "$(abspath $(BIN))/python" -m homework.$(2)
endef
SIZE = --image_size 64x96
TOKENIZER = --patch_size 8 --latent_dim 64 --encoder_blocks 1 --decoder_blocks 2 --epochs 200 --batch_size 3 \
	--lr 3e-3 --warmup 20 --ema 0.99 --validate_every 500
PRIOR = --epochs 50 --batch_size 5 --ema 0.98 --validate_every 375

first-look: $(INSTALLED) ## take every step, from images to new images, in first_look/: a minute and a half of two cores
	rm -rf first_look
	mkdir first_look
	$(call step,1. Images: 15 of the samples to train on and 3 to validate on,data import ../data/sample --dir data --valid_every 6)
	$(call step,2. A tokenizer: an image becomes 8x12 integers below 1024 and comes back,train BSQPatchAutoEncoder $(SIZE) $(TOKENIZER) --output tokenizer.pth)
	$(call step,3. Tokens: the integers of each image and of 4 mirrored and shifted copies,tokenize tokenizer.pth data/tokenized_train.pth data/train $(SIZE) --copies 4)
	$(call step,   and of the images to validate on,tokenize tokenizer.pth data/tokenized_valid.pth data/valid $(SIZE))
	$(call step,4. A prior: which token comes next,train AutoregressiveModel $(PRIOR) --tokenizer tokenizer.pth --output prior.pth)
	$(call step,5. New images: tokens sampled from the prior and decoded,generation tokenizer.pth prior.pth 16 generated --temperature 0.9)
	$(call step,6. Small files: what the prior finds probable takes few bits,compress compress tokenizer.pth prior.pth data/train images.hwa $(SIZE))
	$(call step,   and images again,compress decompress tokenizer.pth prior.pth images.hwa again)
	@printf '\n%s\n%s\n' "Look at first_look/generated/sheet.png, the new images, and at first_look/again, the decoded ones." \
		"From 15 images a prior learns these by heart; README.md has the same steps for thousands of images."

demo: $(INSTALLED) ## show on one page, demo/index.html, what the shipped models do
	$(BIN)/python -m homework.demo

studio: $(INSTALLED) ## open a page to play with the shipped models, until Ctrl-C
	$(BIN)/python -m homework.studio

# in the files' own order, for by their number of tests those of few long ones would come last
test: $(INSTALLED) ## run every test
	$(BIN)/python -m pytest tests -n auto --dist loadfile --no-loadscope-reorder

bench: $(INSTALLED) ## measure feeding, training, tokenizing, sampling, compressing and searching, against baselines
	$(BIN)/python -m bench

lint: $(INSTALLED) ## check style, complexity and types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED) ## build the documentation: open site/index.html
	$(BIN)/mkdocs build --strict

notebooks: $(INSTALLED) ## run the notebooks and store their pictures in them: three minutes of a core
	$(BIN)/python -m bench.notebooks

wheel: $(INSTALLED) ## build the wheel in dist/
	$(BIN)/python -m pip wheel . --no-deps --wheel-dir dist

clean: ## remove caches and what demo, first-look, docs and wheel make; data, checkpoints, logs and .venv stay
	rm -rf build demo dist first_look site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find bench grader homework tests -name __pycache__ -type d -prune -exec rm -rf {} +

# the stamp comes last, so that an installation that failed halfway is repeated
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; install one, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt -e '.[dev,docs]'
	@touch $@
