# Two doors: `make demo` trains, scores and reports on the shipped corpus; `make test` tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format recipes evidence clean

demo: $(VENV)/ready
	$(BIN)/gradvac demo --out runs/demo

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Every variant of every recipe of the papers, for seconds each.
recipes: $(VENV)/ready
	for recipe in recipes/gradvac/*.yaml recipes/cats/*.yaml; do $(BIN)/gradvac sweep $$recipe --size smoke --seed 1 || exit 1; done

# docs/evidence.md and its pictures, from the files in evidence/.
evidence: $(VENV)/ready
	$(BIN)/python tools/evidence.py

clean:
	rm -rf $(VENV) runs build
