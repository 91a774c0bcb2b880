# The whole of it: `make book` builds the book, `make test` runs the tests.
# Both need Python 3.11 or newer, git and make, and make everything else.
#
#   PYTHON=python3.12 make book     another Python for .venv
#   MINIMIND_CACHE=/big make book   another place for the trained models

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
NOTEBOOKS := $(wildcard book/*.ipynb)
PORT ?= 8000

# Two processes that each take all cores wait for one another, and on a busy
# machine even one does. The models here are so small that a second thread
# gains little: one each.
export OMP_NUM_THREADS ?= 1
# Where there are several, those that wait sleep, as minimind_core/threads.py
# explains.
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0
# What is built and tested here is trained here, not fetched.
export MINIMIND_STAGES := off
# How many tests, studies or notebooks run at a time.
export WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env stages book test lint serve repository lock clean \
    links colab-check colab-image gpu-check

help:
	@echo "make book    build the book into _build/html"
	@echo "make test    run all tests, and the notebooks"
	@echo "make stages  train what the pages need, once, into the cache"
	@echo "make lint    check style and types"
	@echo "make serve   show the built book on http://localhost:$(PORT)"
	@echo "make links   ask whether the links to other sites still lead there"
	@echo "make colab-check"
	@echo "             run each notebook alone, with the versions of Colab"
	@echo "make gpu-check PY=python3"
	@echo "             check and measure what needs an NVIDIA GPU, with"
	@echo "             a Python that has CUDA"
	@echo "make repository URL=https://github.com/you/fork"
	@echo "             say in all files where the repository lives"
	@echo "make lock    choose new versions for constraints.txt (needs uv)"
	@echo "make clean   remove .venv and _build (not the cache)"

# The environment is made once, and again when what it is made from changes.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[book,test,data,qlora]'
	@touch $@

env: $(VENV)/.stamp

stages: env
	$(PY) -m minimind_core.book --jobs $(WORKERS)

# What the pages load is fetched first: better to hear at once that there is
# no network than after the training.
book: env
	$(PY) book/_ext/vendor.py
	$(PY) -m minimind_core.book --jobs $(WORKERS)
	$(BIN)/jupyter-book build . -W --keep-going -n
	@echo "Open file://$(CURDIR)/_build/html/book/index.html"
	@echo "or run: make serve"

# In CI the tests also measure which lines of the library they reach. The
# notebooks run without that: nbval would start a second measurement in
# kernels that already inherit this one, and then they no longer answer.
ifeq ($(CI),true)
COVERAGE := --cov --cov-report=term
endif

# A test file, or a notebook, runs on one worker from its first line to its
# last: hence loadscope.
test: env lint
	$(PY) -m pytest -n $(WORKERS) --dist loadscope $(COVERAGE) tests
	$(PY) -m pytest -n $(WORKERS) --dist loadscope --nbval-lax \
	    --nbval-current-env --nbval-cell-timeout=900 $(NOTEBOOKS)

# The links to other sites, which needs the network and is no test of ours.
links: env
	$(PY) book/_ext/vendor.py
	$(PY) -m minimind_core.book --jobs $(WORKERS)
	$(BIN)/jupyter-book build . --builder custom --custom-builder linkcheck

# Each notebook alone, as a stranger opens it. With Colab's versions of torch
# and the rest, which are gigabytes: not a part of `make test`, which does the
# same with one notebook and what is installed.
colab-check: env
	$(PY) tools/colab_check.py $(NOTEBOOKS)

# The same with the Python that is there: within Colab's own image.
colab-image:
	$(PYTHON) tools/colab_check.py --in place $(NOTEBOOKS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(PY) book/_ext/vendor.py typescript
	$(BIN)/node _build/vendor/typescript/tsc.js --project jsconfig.json

# On a machine with a GPU, with a Python that has torch and what the package
# needs. Nothing is installed, and no environment is made.
gpu-check:
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(PY) benchmarks/gpu.py $(GPU)

serve:
	@test -f _build/html/book/index.html || \
	    { echo "Nothing is built yet: make book"; exit 1; }
	$(PY) -m http.server --directory _build/html $(PORT)

# The address goes into badges, set-up cells, links: see tools/repository.py.
# Without URL the one that stands is stamped again, into new notebooks too.
repository:
	@$(PYTHON) tools/repository.py $(URL)

lock: env
	$(PY) -m pip install --quiet uv
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/lock.sh

clean:
	rm -rf $(VENV) _build dist build minimind_core.egg-info
