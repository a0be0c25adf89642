# Two doors: `make demo` trains, scores and reports on the shipped corpus; `make test` tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format docs recipes evidence clean

demo: $(VENV)/toolkit
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

# Nothing is installed whose SHA-256 is not in these files; PyTorch for CPUs where that is found. uv
# installs where there is one, and pip what it does not find. What demo imports is compiled then.
OPTIONS := --quiet --no-compile --require-hashes --no-deps --requirement
install = uv pip install $(OPTIONS) $(1) >>$(VENV)/uv.log 2>&1 || $(BIN)/python -m pip install $(OPTIONS) $(1)
export VIRTUAL_ENV := $(abspath $(VENV))

$(VENV)/toolkit: pyproject.toml requirements-toolkit.txt requirements-cpu.txt requirements-cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,requirements-toolkit.txt)
	$(call install,requirements-cpu.txt) 2>$(VENV)/cpu.log || $(call install,requirements-cuda.txt)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/ready: $(VENV)/toolkit requirements.txt
	$(call install,requirements.txt)
	$(BIN)/python -m compileall -q -q -j 0 $(VENV)/lib || true
	$(BIN)/python -m pip check
	touch $@

# The documentation site, build/site/index.html; every warning is an error.
docs: $(VENV)/ready
	$(BIN)/python -m tools.website.build

# Every variant of every recipe of the papers, for seconds each.
recipes: $(VENV)/ready
	for recipe in recipes/gradvac/*.yaml recipes/cats/*.yaml; do $(BIN)/gradvac sweep $$recipe --size smoke --seed 1 || exit 1; done

# docs/evidence.md and its pictures, from the files in evidence/.
evidence: $(VENV)/ready
	$(BIN)/python -m tools.evidence

clean:
	rm -rf $(VENV) runs build
