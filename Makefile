# medmerge: `make help` lists what there is. Needs Python 3.11 or newer and GNU make.
#   make test PYTHON=python3.12     another interpreter for .venv
#   make book OMP_NUM_THREADS=8     more threads; the numbers may differ in the last digits
#   make -j 2 demo-all              pages side by side, as many as there are cores
#   make test JOBS=4                files of tests side by side, as many as there are cores by default, 8 at most

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
HTML   := _build/html

JOBS   ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))

# One thread: on a shared or small machine torch's threads wait for each other,
# and a fixed count makes a CPU run the same wherever it runs.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo demo-all cost bench report book links explore test lint clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install the pinned requirements and this package

$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' found. Install Python 3.11 or newer, or name one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "medmerge needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $$($(PYTHON) -V)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(VENV) holds $$($(BIN)/python -V), older than 3.11: delete it (rm -r $(VENV)) and try again" >&2; exit 1; }
	@echo "Installing requirements.txt into $(VENV) (about 5 GB the first time, a few minutes)"
	@$(BIN)/python -m pip install -qq -r requirements.txt
	@$(BIN)/python -m pip install -qq --no-deps -e .
	@touch $@

# run NOTEBOOK PARAMS: finished runs are recognised and not repeated
run = @echo "Running $(1) with $(2)"; $(BIN)/medmerge run $(1) $(2)

# A page a target, each after the runs that it starts from: `make -j 2 demo-all` draws two at a time. The pages on weights and
# features show what is there of the pair, and so come before its ablations, whatever -j says.
DEMO     := base source pair
LOOK     := weights features cost
ABLATION := ablation-batchnorm ablation-zeros ablation-granularity controls rivals premise
FURTHER  := source-scratch premise-elsewhere three transformer-source transformer-source-lesions transformer
.PHONY: demo/status $(patsubst %,demo/%,$(DEMO) $(LOOK) $(ABLATION) $(FURTHER))

demo: $(DEMO:%=demo/%) ## Run the demo: drawn images, a small backbone, a minute or two

demo-all: demo $(patsubst %,demo/%,$(LOOK) $(ABLATION) $(FURTHER)) ## Run every approach and ablation on drawn images, some minutes

demo/base: $(STAMP)
	$(call run,notebooks/source.ipynb,params/demo/base.yaml)
demo/source: demo/base
	$(call run,notebooks/source.ipynb,params/demo/source.yaml)
demo/pair: demo/source
	$(call run,notebooks/pair.ipynb,params/demo/pair.yaml)
demo/weights: demo/pair
	$(call run,notebooks/weights.ipynb,params/demo/weights.yaml)
demo/features: demo/pair
	$(call run,notebooks/features.ipynb,params/demo/features.yaml)
demo/cost: $(STAMP)
	$(call run,notebooks/cost.ipynb,params/demo/cost.yaml)

$(ABLATION:%=demo/%): demo/weights demo/features
demo/ablation-batchnorm:
	$(call run,notebooks/ablation_batchnorm.ipynb,params/demo/ablation-batchnorm.yaml)
demo/ablation-zeros:
	$(call run,notebooks/ablation_zeros.ipynb,params/demo/ablation-zeros.yaml)
demo/ablation-granularity:
	$(call run,notebooks/ablation_granularity.ipynb,params/demo/ablation-granularity.yaml)
demo/controls:
	$(call run,notebooks/controls.ipynb,params/demo/controls.yaml)
demo/rivals:
	$(call run,notebooks/pair.ipynb,params/demo/rivals.yaml)
demo/premise:
	$(call run,notebooks/premise.ipynb,params/demo/premise.yaml)
demo/source-scratch: $(STAMP)
	$(call run,notebooks/source.ipynb,params/demo/source-scratch.yaml)
demo/premise-elsewhere: demo/base demo/source-scratch
	$(call run,notebooks/premise.ipynb,params/demo/premise-elsewhere.yaml)
demo/three: demo/source demo/source-scratch
	$(call run,notebooks/pair.ipynb,params/demo/three.yaml)
demo/transformer-source: $(STAMP)
	$(call run,notebooks/source.ipynb,params/demo/transformer-source.yaml)
demo/transformer-source-lesions: demo/transformer-source
	$(call run,notebooks/source.ipynb,params/demo/transformer-source-lesions.yaml)
demo/transformer: demo/transformer-source-lesions
	$(call run,notebooks/pair.ipynb,params/demo/transformer.yaml)

cost: $(STAMP) ## Measure again, on this machine, what a step of each phase costs
	@rm -f results/open/cost/densenet121-64px*.json results/open/cost/resnet50-64px*.json
	$(call run,notebooks/cost.ipynb,params/open/cost-densenet121.yaml)
	$(call run,notebooks/cost.ipynb,params/open/cost-resnet50.yaml)

report: $(STAMP) ## Draw every page of results/ again from its records alone: the same files
	@seq $(JOBS) | xargs -P $(JOBS) -I{} bash -c '$(BIN)/medmerge report \
	  $$(ls params/open/*.yaml params/paper/*.yaml | grep -v open/source- | awk "NR % $(JOBS) == {} - 1")'

bench: $(STAMP) ## Measure again what a step, an epoch and a study cost against other ways; an hour
	@$(BIN)/python -m benchmarks

explore: demo ## Open JupyterLab on the explorer of merging weights
	@$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/weights.ipynb

# --all: a second build would not repeat the warnings of the first, and -W would pass.
demo/status: demo $(filter demo-all,$(MAKECMDGOALS))
	$(call run,notebooks/status.ipynb,params/demo/status.yaml)

book: demo/status ## Run the demo, then build the book; any warning is an error
	@echo "Building the book"
	@rm -rf $(HTML)
	@$(BIN)/jupyter-book build . --all -W -n --keep-going -q >/dev/null || { echo "The book did not build; the reasons are above" >&2; exit 1; }
	@test -s $(HTML)/index.html -a -s $(HTML)/book/index.html || { echo "The build made no $(HTML)/index.html" >&2; exit 1; }
	@echo "The book: file://$(CURDIR)/$(HTML)/index.html"

links: demo/status ## Follow the book's links to other people's pages; needs a network
	@$(BIN)/jupyter-book build . --path-output _build/links --all --builder linkcheck -q >/dev/null 2>&1 || { \
	  echo "Links that lead nowhere:" >&2; cat _build/links/_build/html/output.txt >&2; exit 1; }
	@echo "All links lead somewhere"

test: $(STAMP) ## Run the tests; after `make book` also over every page of it
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(STAMP) ## Check the code's style, the public modules' type hints and that imports go one way
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

clean: ## Delete the built book, the demo's results, logs and caches; .venv stays
	@rm -rf _build results/demo logs .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
