# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow torture lint clean

demo: $(VENV)/.runtime
	$(BIN)/groupsae demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

torture: $(VENV)/.dev
	GROUPSAE_TORTURE=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/reliability tests/training/test_resume.py

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a minute or two) ..."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a minute or two) ..."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) build dist *.egg-info
