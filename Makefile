# make demo    set up, train the teacher and the student on the demo photos, test, draw the picture
# make test    set up, lint, check the types, run the tests, one process per core
# make docs    set up, build the documentation site into site/
# make fuzz    try random recipes, images, checkpoints, results, ... for minutes instead of seconds
# make mutants change the code in small ways and see that the tests notice; goes on where it was stopped
#
# They install what is missing into .venv first. Another Python, another torch (each with pip's arguments):
#   make demo PYTHON=python3.12 TORCH=torch==2.13.0 TORCHVISION=torchvision==0.28.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
BASICSR := basicsr==1.4.2

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := .venv/.installed
DEMO := options/demo/pisr_fsrcnn_x2.yml

JOBS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')

.PHONY: demo test docs fuzz mutants lint install clean

demo: $(STAMP)
	$(PY) tools/prepare_data.py demo -o datasets/demo
	$(PY) tools/train.py -opt $(DEMO) --auto_resume
	$(PY) tools/test.py -opt $(DEMO)
	$(PY) tools/picture.py -opt $(DEMO)

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist worksteal

mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m tests.mutants $(MUTANTS)

fuzz: $(STAMP)
	PISR_FUZZ=fuzz $(PY) -m pytest -q tests/test_fuzz_*.py

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(STAMP)
	$(PIP) install -q --no-deps -r docs/requirements.txt
	$(PY) -m mkdocs build --strict

install: $(STAMP)

# Without build isolation, because basicsr's build asks for torch, which pip would fetch once more; torchvision and
# basicsr without dependencies, because they would replace a torch for CPU by one for CUDA.
$(STAMP): constraints.txt setup.py
	$(PYTHON) -m venv .venv
	$(PIP) install -q --no-deps -r constraints.txt
	$(PIP) install -q $(TORCH)
	$(PIP) install -q --no-deps $(TORCHVISION)
	$(PIP) install -q --no-deps --no-build-isolation $(BASICSR)
	$(PIP) install -q --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist site *.egg-info
