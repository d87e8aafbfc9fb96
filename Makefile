# Each target sets everything up by itself: a virtual environment in .venv, the install, then the work.
# A machine with Python 3.11 or newer and nothing else is enough.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
CONSTRAINTS := constraints.txt
PYTEST_ARGS ?= -n 2 --dist worksteal

SHARE ?= 1/1

# The install compiles nothing: of 17,000 modules a few thousand are ever imported, and Python keeps what it compiled of those
# (but not where PYTHONDONTWRITEBYTECODE is set: a command that is started by hand then compiles anew what no target has imported).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test prove lint types docs newest constraints lock clean

demo: $(VENV)/installed
	$(BIN)/luthier demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not prove" $(PYTEST_ARGS)

prove: $(VENV)/installed-dev
	$(BIN)/python -m pytest --hypothesis-profile prove --share $(SHARE) $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/python docs/make_pages.py

# The newest release of everything that luthier stands on, beyond the ranges of pyproject.toml, in an environment of its own.
newest:
	$(MAKE) VENV=.venv-newest .venv-newest/bin/python
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check packaging
	.venv-newest/bin/python tests/newest.py

constraints: $(VENV)/installed-dev
	( sed -n 1p $(CONSTRAINTS); $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' ) > $(CONSTRAINTS).new && mv $(CONSTRAINTS).new $(CONSTRAINTS)

# The hashes of what constraints.txt names, as this machine gets it, and the bill of materials.
lock: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --no-deps --only-binary=:all: \
		--report - -r $(CONSTRAINTS) 2>/dev/null | $(BIN)/python docs/supply_chain.py

clean:
	rm -rf $(VENV) .venv-newest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "luthier needs Python 3.11 or newer; name it with: make PYTHON=/path/to/python3.11" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2; exit 3; }

$(VENV)/installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP_INSTALL) -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP_INSTALL) -c $(CONSTRAINTS) -e '.[dev]'
	@touch $(VENV)/installed $@
