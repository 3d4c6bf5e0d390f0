# `make` lists what there is. PYTHON names another interpreter, PIP_ARGS goes to pip.

VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
PROTOS := $(wildcard protos/minmo/v1/*.proto)
INSTALLS := pyproject.toml setup.py tools/generate_protos.py tests/published.txt $(PROTOS)
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)
PIP_ARGS ?=
PYTEST_ARGS ?=
KIND ?= cpu
# What `buf breaking` compares the contracts with.
BEFORE ?= HEAD~1

.DEFAULT_GOAL := help
.PHONY: help run test lint format protos weights images clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Install, fetch the weights, ask a question, serve until Ctrl-C
	@$(BIN)/minmo weights
	@$(BIN)/minmo talk examples/question.wav --out answer.wav --report report.json --keep

test: $(VENV)/.installed-dev minmo/v1/.generated $(if $(PYTEST_ARGS),,$(CLIENTS)/.installed) ## Run all tests (PYTEST_ARGS: which, how)
	@$(BIN)/minmo weights
	@$(if $(PYTEST_ARGS),$(BIN)/python -m pytest $(PYTEST_ARGS),$(call all_tests))

lint: $(VENV)/.installed-dev minmo/v1/.generated ## Check style, types, imports and contracts
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@cd protos && ../$(BIN)/buf lint
	@if git rev-parse --quiet --verify $(BEFORE):protos >/dev/null 2>&1; then \
		$(BIN)/buf breaking protos --against '.git#ref=$(BEFORE),subdir=protos'; \
	else \
		echo "buf breaking: skipped, there are no contracts in $(BEFORE)"; \
	fi

format: $(VENV)/.installed-dev ## Format the code, fix what can be fixed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

protos: $(VENV)/.installed-dev ## Generate minmo/v1 from protos/
	@$(BIN)/python tools/generate_protos.py
	@touch minmo/v1/.generated

weights: $(VENV)/.installed ## Fetch and prepare the pretrained weights
	@$(BIN)/minmo weights

images: ## Build the images, with Docker (TORCH_INDEX: PyTorch for a CPU; or KIND=gpu; see docs/images.md)
	@TORCH_INDEX="$(TORCH_INDEX)" deploy/images/build $(KIND)

clean: ## Remove what was installed, generated and cached here (weights stay in ~/.cache/minmo)
	@rm -rf $(VENV) $(CLIENTS) minmo/v1 build dist *.egg-info answer.wav report.json
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find minmo services tests tools -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.installed: $(INSTALLS)
	@$(call set_up,)

$(VENV)/.installed-dev: $(INSTALLS)
	@$(call set_up,--dev)

$(CLIENTS)/.installed: tests/system/clients/requirements.txt
	@$(call set_up,--clients)

# The installation generates minmo/v1 too, but without the stubs for the type checker.
minmo/v1/.generated: $(VENV)/.installed-dev
	@$(BIN)/python tools/generate_protos.py
	@touch $@

# Files share the cores, the longest first. Those that talk with whole stacks mostly wait for speech, so
# two of them go well together, but not beside what computes. A test that fails once is run again, and
# told of: speech takes its time, and machines that others use stand still now and then.
IMPORTED := tests/system/test_imported_cascade.py
define all_tests
OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --reruns 1 $(IMPORTED) tests/service tests/unit \
	&& $(BIN)/python -m pytest -n auto --dist loadfile --reruns 1 tests/system --ignore $(IMPORTED)
endef

define set_up
$(if $(PYTHON),$(PYTHON) tools/set_up.py $(1) -- $(PIP_ARGS),\
	echo "make: there is no Python 3.11 to 3.13; on Debian and Ubuntu: apt-get install python3 python3-venv python3-dev, or name one with PYTHON=..." >&2; exit 1)
endef
