# The two commands that set everything up by themselves: `make demo` and `make test`.
# PYTHON is the interpreter that the virtual environment is made with.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= demo-run

.PHONY: demo test test-fast docs figures dist toolchains lower-bounds hardware-test clean

demo: $(VENV)/.installed
	$(BIN)/vitedge demo --dir $(RUN)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check vitedge tests benchmarks calib docs
	$(BIN)/mypy vitedge
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Without the tests that take long, need the trained model, or a vendor's compiler.
test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not real"

# The documentation: site/index.html opens without a network. A broken link is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The figures and tables of the README and the documentation, out of benchmarks/results.
figures: $(VENV)/.installed
	$(BIN)/python benchmarks/figures.py

# The wheel and the source distribution, checked as the package index checks them.
dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

# What the tests of the target rknn need besides: the vendor's compiler (5.6 GB).
toolchains: $(VENV)/.installed-dev
	$(BIN)/vitedge toolchain install rknn

# The core alone (Python 3.10 to 3.12), with the oldest versions that setup.cfg allows, in an environment of its own.
lower-bounds:
	$(PYTHON) -m venv $(VENV)-lower
	$(VENV)-lower/bin/pip install --quiet -c constraints-lower.txt . 'pytest>=8' hypothesis
	$(VENV)-lower/bin/python -m pytest -q tests/test_imports.py tests/test_config.py tests/test_documents.py \
		tests/test_bundle.py tests/test_files.py tests/cli/test_cli_shape.py

# On a machine with a GPU and TensorRT, or on a board: no torch, and the system's own TensorRT.
hardware-test:
	$(PYTHON) -m venv --system-site-packages $(VENV)-hardware
	$(VENV)-hardware/bin/pip install --quiet -e . onnx pytest
	$(VENV)-hardware/bin/python -m pytest -m hardware $$(grep -rl --include='*.py' 'mark.hardware' tests)

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[compress,report]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -e '.[all,dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site dist $(VENV)-lower $(RUN) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
