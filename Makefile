# The whole interface: make help. Nothing here needs more than Python 3.11+ and make.
PYTHON ?= python3
RUN_ENV = .venv
DEV_ENV = .venv-dev
TRANSLATOR_ENV = .venv-translator
DEV = $(DEV_ENV)/bin
PIP_FLAGS = --quiet --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(RUN_ENV)/.ready ## Install what is missing into .venv

run: $(RUN_ENV)/.ready ## Install what is missing and serve on 127.0.0.1:8080
	@exec $(RUN_ENV)/bin/penstock serve

translator: $(TRANSLATOR_ENV)/.ready ## Install what reaches providers of other wires than OpenAI's and Anthropic's

test: test-house test-unit test-contract test-e2e ## Run every test

test-house: $(DEV_ENV)/.ready ## The house's rules
	$(DEV)/python -m pytest tests/house

test-unit: $(DEV_ENV)/.ready ## Our thinking, without network: seconds
	$(DEV)/python -m pytest tests/unit

test-contract: $(DEV_ENV)/.ready ## Stores, upstreams and the simulator, for real
	$(DEV)/python -m pytest tests/contract

test-e2e: $(DEV_ENV)/.ready ## Whole server processes, from the user's side
	$(DEV)/python -m pytest tests/e2e

check: $(DEV_ENV)/.ready ## Lint, types, imports
	$(DEV)/ruff format --check .
	$(DEV)/ruff check .
	$(DEV)/mypy
	$(DEV)/lint-imports

prove: $(DEV_ENV)/.ready ## Prove the guarantees: make prove ONLY=walk.budget LONG=1
	$(DEV)/python -m tests.prove $(if $(ONLY),--only $(ONLY) --merge) $(if $(LONG),--long) --out proof/results.json --table README.md

bench: $(DEV_ENV)/.ready ## Penstock beside its peers: make bench QUICK=1 ONLY=penstock-sqlite,tensorzero,requests
	$(DEV)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

lock: $(DEV_ENV)/.ready ## Resolve the lock files anew; nothing younger than a week enters
	sh requirements/lock.sh

$(RUN_ENV)/.ready: requirements/core.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Penstock needs Python 3.11 or newer: make PYTHON=python3.12 run")'
	@test -x $(RUN_ENV)/bin/python || $(PYTHON) -m venv $(RUN_ENV)
	@$(RUN_ENV)/bin/python -m pip install $(PIP_FLAGS) -r requirements/core.lock
	@$(RUN_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_ENV)/.ready: requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Penstock needs Python 3.11 or newer: make PYTHON=python3.12 test")'
	@test -x $(DEV_ENV)/bin/python || $(PYTHON) -m venv $(DEV_ENV)
	@$(DEV_ENV)/bin/python -m pip install $(PIP_FLAGS) -r requirements/dev.lock
	@$(DEV_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(TRANSLATOR_ENV)/.ready: requirements/translator.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Penstock needs Python 3.11 or newer: make PYTHON=python3.12 translator")'
	@test -x $(TRANSLATOR_ENV)/bin/python || $(PYTHON) -m venv $(TRANSLATOR_ENV)
	@$(TRANSLATOR_ENV)/bin/python -m pip install $(PIP_FLAGS) -r requirements/translator.lock
	@touch $@

.PHONY: help install run translator test test-house test-unit test-contract test-e2e check prove bench lock
