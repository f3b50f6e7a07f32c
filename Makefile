# Two commands do everything on a fresh machine: `make demo` and `make test`. `make bench` compares with peers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
PEERS := sae-lens eai-sparsify dictionary-learning

.PHONY: demo test slow torture lint bench clean

demo: $(VENV)/.runtime
	$(BIN)/groupsae demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

torture: $(VENV)/.dev
	GROUPSAE_TORTURE=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/reliability tests/training/test_resume.py

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(BENCH)/.peers
	$(BENCH)/bin/python bench/step.py
	$(BENCH)/bin/python bench/end_to_end.py

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

# nnsight asks for torchvision, which nothing here uses and which keeps transformers from importing
# where it was built for another build of torch than the one installed.
$(BENCH)/.peers: pyproject.toml constraints.txt
	@echo "installing groupsae and its peers into $(BENCH) (some minutes) ..."
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/pip install --quiet --constraint constraints.txt --editable .
	@for peer in $(PEERS); do $(BENCH)/bin/pip install --quiet --constraint constraints.txt $$peer \
		|| echo "$$peer could not be installed; the benchmarks will leave it out"; done
	@$(BENCH)/bin/pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) $(BENCH) build dist *.egg-info
