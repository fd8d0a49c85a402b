# The verbs: dev demo test check c-test report bench clean.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.hwq-installed

.PHONY: all dev demo test check c-test report bench clean toolchain

all: dev

toolchain:
	@missing=""; \
	command -v $(PYTHON) >/dev/null || missing="$$missing python3"; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "hwq needs Python 3.11 or newer. On Debian or Ubuntu:"; echo "  apt-get install -y python3 python3-dev python3-venv"; echo "or name another one: make PYTHON=python3.11 ..."; exit 1; }; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import sysconfig, pathlib, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' 2>/dev/null || missing="$$missing python3-dev"; \
	command -v $${CC:-cc} >/dev/null || missing="$$missing gcc libc6-dev"; \
	if [ -n "$$missing" ]; then echo "hwq needs packages that are not installed. On Debian or Ubuntu:"; echo "  apt-get install -y$$missing"; exit 1; fi

$(PY): | toolchain
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml setup.py tests/constraints.txt | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -c tests/constraints.txt "setuptools>=77" "cython>=3.3" wheel
	HWQ_COMPILE=no $(PY) -m pip install -q --disable-pip-version-check -c tests/constraints.txt --no-build-isolation -e ".[test]"
	@touch $@

# setuptools itself finds what changed, so this runs every time; the lock keeps two shells from building at once.
dev: $(STAMP)
	@flock $(VENV) $(PY) setup.py -q build_ext --inplace

demo: dev
	$(PY) -m hwq demo --out hwq-demo --overwrite

test: dev
	$(PY) -m pytest -q

check: dev
	$(PY) -m ruff check hwq tests reports setup.py
	$(PY) -m ruff format --check hwq tests reports setup.py
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_layers.py

c-test: toolchain
	$(MAKE) -C kernels/tests
	$(MAKE) -C simulators/tests

# Reports name the programs that they compare with; onnxruntime comes with the test extra.
report: dev
	for script in $(filter-out reports/kernels.py,$(wildcard reports/*.py)); do $(PY) $$script || exit 1; done

# Minutes on a quiet machine; not part of `report`, whose folders do not depend on the machine.
bench: dev
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) reports/kernels.py

clean:
	rm -rf build dist *.egg-info hwq/*.so hwq/_kernels.c hwq/_simulators.c kernels/tests/build simulators/tests/build
