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

# Nothing is installed whose SHA-256 is not in these files; PyTorch for CPUs where pip finds that.
LOCKED := $(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement

$(VENV)/ready: pyproject.toml requirements.txt requirements-cpu.txt requirements-cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) requirements.txt
	$(LOCKED) requirements-cpu.txt 2>$(VENV)/cpu.log || $(LOCKED) requirements-cuda.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

# Every variant of every recipe of the papers, for seconds each.
recipes: $(VENV)/ready
	for recipe in recipes/gradvac/*.yaml recipes/cats/*.yaml; do $(BIN)/gradvac sweep $$recipe --size smoke --seed 1 || exit 1; done

# docs/evidence.md and its pictures, from the files in evidence/.
evidence: $(VENV)/ready
	$(BIN)/python -m tools.evidence

clean:
	rm -rf $(VENV) runs build
