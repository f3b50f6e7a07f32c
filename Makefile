# Two commands do everything on a fresh machine: `make demo` and `make test`. `make bench` compares with peers,
# `make test-peers` has each of them read our files and compares what we make of theirs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
PEER_VENVS := .venv-peers
SAEBENCH := sae-bench sae-probes collectibles tabulate openai
PEERS := sae-lens eai-sparsify dictionary-learning

.PHONY: demo test slow torture lint bench real test-peers clean

demo: $(VENV)/.runtime
	$(BIN)/groupsae demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

torture: $(VENV)/.dev
	GROUPSAE_TORTURE=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/reliability tests/training/test_resume.py

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(BENCH)/.peers
	$(BENCH)/bin/python bench/step.py
	$(BENCH)/bin/python bench/end_to_end.py

real: $(VENV)/.runtime
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/python experiments/real.py $(REAL)

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

# The peers' pins exclude each other, so each has an environment of its own. SAEBench's exclude those of torch and
# SAELens; it is installed beside SAELens without its dependencies.
test-peers: $(PEERS:%=$(PEER_VENVS)/%/.ready)
	@for peer in $(PEERS); do $(PEER_VENVS)/$$peer/bin/python -m pytest -q -p no:cacheprovider tests/peers || exit 1; done

$(PEER_VENVS)/%/.ready: pyproject.toml constraints.txt
	@echo "installing groupsae and $* into $(PEER_VENVS)/$* (a minute or two) ..."
	@$(PYTHON) -m venv $(PEER_VENVS)/$*
	@$(PEER_VENVS)/$*/bin/pip install --quiet --constraint constraints.txt --editable . $* pytest
	@test $* != sae-lens || $(PEER_VENVS)/$*/bin/pip install --quiet --constraint constraints.txt --no-deps $(SAEBENCH)
	@$(PEER_VENVS)/$*/bin/pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) $(BENCH) $(PEER_VENVS) build dist *.egg-info
