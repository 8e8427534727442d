# Commands for a machine without Docker. Needs Linux x86-64 with Python 3.11 or newer, make, and the package index.
#
#   make up DATA=../shared/MedPix-2.0   install, start MongoDB, seed, serve on port 8000, train what is missing
#   make gpu DATA=... WEIGHTS=...       on a machine with a CUDA device: train, compare with the CPU and serve, in minutes
#   make test                           install what the tests need, check the style and the types, run the tests
#   make audit                          known vulnerabilities and the licences of all dependencies; needs a vulnerability service

PYTHON ?= python3
# The folder of MedPix 2.0; without it the published archive is downloaded.
DATA ?=
# For make gpu: a folder with resnet50*.pth and CLIP folders; without it these train from random weights.
WEIGHTS ?=
# 1: install for an NVIDIA GPU, 0: without one; default: what this machine has.
GPU ?= $(if $(wildcard /proc/driver/nvidia/version /dev/nvidiactl /dev/dxg)$(shell command -v nvidia-smi),1,0)
# Arguments of pytest, for example: make test ARGS="tests/api -x"
ARGS ?=
# Processes that run the tests, each with a mongod and models of its own.
JOBS ?= 2

# Without bytecode every process compiles PyTorch again, for 7 s of CPU time, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv || echo $(VENV)/tools/bin/uv)
# What `import torch` does without on a CPU. The other CUDA libraries are linked into torch: without libcudnn.so.9,
# libcublas.so.13 and so on it does not load.
GPU_ONLY := triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cuda-cccl nvidia-cusolver nvidia-nvtx
WITHOUT := $(if $(filter 0,$(GPU)),$(GPU_ONLY))
PACKAGES := $(VENV)/gpu-$(GPU).stamp
SIZE := $(if $(WITHOUT),3.0 GB to download (5 GB on the disk) without an NVIDIA GPU; GPU=1: 3.5 GB (6.4 GB),3.5 GB to \
	download (6.4 GB on the disk) for an NVIDIA GPU; GPU=0: 3.0 GB (5 GB))
# Arguments: a lock file.
INSTALL = awk -v "names=$(WITHOUT)" 'BEGIN { split(names, list, " "); for (i in list) without[list[i]] } \
	/^[^ \#]/ { wanted = !(substr($$1, 1, index($$1, "=") - 1) in without) } wanted' $(1) \
	| $(UV) pip sync --quiet --require-hashes --python $(BIN)/python -
PIP_LICENSES := 5.5.5
PIP_AUDIT := 2.10.1
COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help up install test gpu check audit browser lock clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

up: $(VENV)/runtime.stamp
	exec $(BIN)/medpix up $(if $(DATA),--data "$(DATA)")

install: $(VENV)/runtime.stamp

# The tests leave a picture of every page in build/screenshots, to be looked at.
test: check browser
	MEDPIX_SCREENSHOTS=$(CURDIR)/build/screenshots $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# No network: data and weights come from the folders given, the database is a mongod of its own.
gpu: $(VENV)/tests.stamp
	$(BIN)/python -m benchmarks.gpu --data "$(DATA)" $(if $(WEIGHTS),--weights "$(WEIGHTS)")
	$(BIN)/python -m pytest -m gpu -q $(ARGS)

check: $(VENV)/tests.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# --strict: a package that the service does not know is an error, so that no answer is not taken for no vulnerability.
audit: $(VENV)/runtime.stamp
	$(UV) tool run pip-licenses==$(PIP_LICENSES) --python=$(BIN)/python --from=mixed --order=license
	$(UV) tool run pip-audit==$(PIP_AUDIT) --strict --disable-pip --require-hashes --requirement requirements.lock

# Without Chromium the tests that drive it are skipped, and say so.
browser:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
		&& apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null; } \
		|| echo "Chromium is not here and could not be installed; on Debian: apt-get install chromium"

# After a change of the dependencies in pyproject.toml.
lock: $(VENV)/uv.stamp
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) -c requirements.lock --extra test pyproject.toml -o tests/requirements.lock
	$(COMPILE) -c requirements.lock --extra bench pyproject.toml -o benchmarks/requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/uv.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x "$(UV)" || { $(PYTHON) -m venv $(VENV)/tools && $(VENV)/tools/bin/python -m pip install --quiet uv; }
	touch $@

# Installed for the other kind of machine before: install anew.
$(PACKAGES): $(VENV)/uv.stamp
	rm -f $(VENV)/gpu-*.stamp
	touch $@

# The tests' environment holds all that the service needs: it serves too.
$(VENV)/runtime.stamp: $(PACKAGES) requirements.lock pyproject.toml
	@echo "Installing the service ($(SIZE)) ..."
	$(call INSTALL,$(if $(wildcard $(VENV)/tests.stamp),tests/requirements.lock,requirements.lock))
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/tests.stamp: $(PACKAGES) tests/requirements.lock pyproject.toml
	@echo "Installing the service and its tests ($(SIZE)) ..."
	$(call INSTALL,tests/requirements.lock)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(VENV)/runtime.stamp $@
