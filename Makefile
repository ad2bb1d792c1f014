# Needs make and a Python from 3.11 on; everything else is installed into .venv.
# PYTHON=... picks another Python, PYTEST_ARGS=... and ARGS=... reach the program that is run.

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help demo test check bench params clean

help:
	@echo 'make demo    show a service under load, SECONDS=... for how long'
	@echo 'make test    run the tests, e.g. PYTEST_ARGS="-k queue -x"'
	@echo 'make check   lint, format, types, and who may import whom'
	@echo 'make bench   measure, e.g. ARGS=--help'
	@echo 'make params  write PARAMS.md and balancer.schema.json anew'
	@echo 'make clean   remove what these made'

demo: $(INSTALLED)
	$(RUN) examples/demo/run.py $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

test: $(INSTALLED)
	$(RUN) -m pytest $(PYTEST_ARGS)

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(INSTALLED)
	$(RUN) benchmarks/run.py $(ARGS)

# By way of a copy: a failure must not leave half a file.
params: $(INSTALLED)
	$(RUN) -m fastapi_balancer.config params > $(VENV)/written && mv $(VENV)/written PARAMS.md
	$(RUN) -m fastapi_balancer.config schema > $(VENV)/written && mv $(VENV)/written balancer.schema.json

# Made from nothing each time, so that no package of an earlier state stays behind.
$(INSTALLED): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error no Python from 3.11 on with venv was found; name one with PYTHON=...))
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name node_modules -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
