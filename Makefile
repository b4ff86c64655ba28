# make demo    solve the bundled digits and say where the report is
# make test    run the tests
# make lint    check style and types
# make docs    make the site in docs/_build/html; a warning is an error
# make dist    make the wheel and the source archive in dist/, and try the wheel
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

.PHONY: help demo test lint docs dist clean

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

# Pages of names that are gone would stay in docs/api. The README is the start page.
docs: $(VENV)/.installed-docs
	@rm -rf docs/api docs/_build
	@$(BIN)/python -m sphinx -c docs -d docs/_build/doctrees -qW --keep-going . docs/_build/html
	@cp docs/_build/html/README.html docs/_build/html/index.html
	@echo "The site is docs/_build/html/index.html."

# Away from the checkout and its environment, as a user has it.
dist: $(VENV)/.installed-lint
	@rm -rf build dist
	@$(BIN)/python -m build >/dev/null
	@"$(PYTHON)" -m venv dist/venv
	@dist/venv/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt dist/*.whl
	@cd dist && venv/bin/fairbilevel solve --model mlp --steps 20 --dense-steps 20 --out run
	@rm -rf dist/venv dist/run

clean:
	rm -rf $(VENV) docs/_build docs/api build dist \
		.pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info

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
	@echo "Installing ruff, mypy and build into $(VENV)."
	@$(call install,dev)
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing Sphinx into $(VENV)."
	@$(call install,docs)
	@touch $@

install = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	-c constraints.txt -e '.[$(1)]' || { echo "make: installing failed, for the reason above:" \
	"it needs a package index and 2 GB of disk" >&2; exit 1; }
