# make demo    solve the bundled digits and say where the report is
# make test    run the tests
# make lint    check style and types
# make clean   remove the environment and caches; runs/ stays
#
# Each sets up .venv by itself, with the newest Python from 3.11 on;
# make demo PYTHON=/path/to/python takes another.

VENV := .venv
BIN := $(VENV)/bin

# The first interpreter that is new enough and has the modules named.
first = $(shell for p in python3.13 python3.12 python3.11 python3; do \
	if $$p -c 'import sys$(1); sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$p; break; fi; done)
comma := ,
# One without ensurepip comes last: it cannot make an environment, and is told so.
ifndef PYTHON
PYTHON := $(or $(call first,$(comma) venv$(comma) ensurepip),$(call first))
endif

.PHONY: help demo test lint clean

help:
	@sed -n 's/^# \(make [a-z]*  .*\)/\1/p' Makefile

demo: $(VENV)/.installed
	@$(BIN)/fairbilevel solve

test: $(VENV)/.installed
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer was found: install one, or" \
		"name one as in make demo PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: $(PYTHON) is not a Python 3.11 or newer: name another as in" \
		"make demo PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make an environment, it lacks venv or ensurepip: install" \
		"them (on Debian and Ubuntu the package python3-venv), or name another Python as in" \
		"make demo PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Making the environment $(VENV) with $$("$(PYTHON)" --version)."
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing fairbilevel and what it needs into $(VENV); a few minutes the first time."
	@$(call install,test)
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	@echo "Installing ruff and mypy into $(VENV)."
	@$(call install,dev)
	@touch $@

install = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	-c constraints.txt -e '.[$(1)]' || { echo "make: installing failed, for the reason above:" \
	"it needs a package index and 2 GB of disk" >&2; exit 1; }
