# make demo    set up, train the teacher and the student on the demo photos, test, draw the picture
# make test    set up, lint, check the types, run the tests, one process per core
# make docs    set up, build the documentation site into site/
# make gpu     acceptance on a machine with a GPU and PyTorch, without a network; it needs the folder wheels/
# make gpu-wheels  fetches that folder, on a machine with a network
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

# What `make gpu` needs beside PyTorch and the packages that come with it in images for machine learning. For a machine
# without some of those: make gpu-wheels GPU_MORE="numpy opencv-python-headless scikit-image scipy"
GPU_PYTHON ?= 3.12
GPU_MORE ?=
GPU_WHEELS := addict docstring_parser filelock future lmdb mmengine platformdirs pytorch_optimizer safetensors setuptools \
  termcolor yapf execnet hypothesis iniconfig markdown-it-py mdurl packaging pluggy Pygments pytest pytest-xdist rich \
  sortedcontainers $(GPU_MORE)
GPU_PLATFORMS := $(foreach n,28 27 24 17 12 5,--platform manylinux_2_$(n)_x86_64) --platform manylinux2014_x86_64

JOBS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')

.PHONY: demo test gpu gpu-wheels docs fuzz mutants lint install clean

demo: $(STAMP)
	$(PY) tools/prepare_data.py demo -o datasets/demo
	$(PY) tools/train.py -opt $(DEMO) --auto_resume
	$(PY) tools/test.py -opt $(DEMO)
	$(PY) tools/picture.py -opt $(DEMO)

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist worksteal

gpu: .venv-gpu/.installed
	.venv-gpu/bin/python -m benchmarks.gpu $(GPU)

# The second line lends the packages of $(PYTHON), also where that is itself a virtual environment.
.venv-gpu/.installed: $(wildcard wheels/*.whl)
	@ls wheels/*.whl > /dev/null || { echo 'wheels/ is missing: run make gpu-wheels on a machine with a network.'; exit 1; }
	$(PYTHON) -m venv --clear --without-pip --system-site-packages .venv-gpu
	$(PYTHON) -c "import site, sys; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" \
	  > $$(.venv-gpu/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/lent.pth
	$(PYTHON) -m pip --python .venv-gpu/bin/python install -q --no-index --no-deps wheels/*.whl
	.venv-gpu/bin/python -c "import cv2, requests, scipy, skimage, tqdm, yaml, pisr_plugin"
	touch $@

gpu-wheels: $(STAMP)
	rm -rf wheels
	$(PIP) download -q -d wheels --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) $(GPU_PLATFORMS) \
	  -c constraints.txt $(GPU_WHEELS)
	$(PIP) wheel -q -w wheels --no-deps --no-build-isolation $(BASICSR)
	du -sh wheels

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
	rm -rf .venv .venv-gpu wheels .pytest_cache .ruff_cache .mypy_cache build dist site *.egg-info
