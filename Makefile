# `make demo` and `make test` need only Python 3.11 or later; `make check` is the whole truth.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check format lint types architecture docs clean

demo: $(VENV)/.installed
	$(BIN)/m7b download --variant demo
	$(BIN)/m7b complete "Photosynthesis is the process by which" --max-tokens 60 --temperature 0

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: format lint types architecture test docs

format: $(VENV)/.installed-dev
	$(BIN)/ruff format --check m7b tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check m7b tests

types: $(VENV)/.installed-dev
	$(BIN)/mypy

architecture: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "m7b needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
