# demo: the main job on the simulated cortex, from a fresh machine to a report. test, lint: what .ci/run runs.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo

.PHONY: demo explore test lint docs notebooks clean

demo: $(VENV)/installed-demo
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(VENV)/bin/brainjanus demo --out $(OUT)

# The explorer on the demo's run, or on that of a quick demo (some four minutes) where there is none yet.
explore: $(VENV)/installed-demo
	@test -e $(OUT)/scores.json || test -e runs/quick/scores.json || \
		OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(VENV)/bin/brainjanus demo --quick --out runs/quick
	@$(VENV)/bin/brainjanus explore $$(if test -e $(OUT)/scores.json; then echo $(OUT)/run; else echo runs/quick/run; fi)

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Anew, with what they show; which numbers they say is read before it is committed.
notebooks: $(VENV)/installed-dev
	OMP_NUM_THREADS=2 $(VENV)/bin/python examples/execute.py

$(VENV)/installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "brainjanus needs Python 3.11 or newer, got " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

docs: $(VENV)/installed-dev
	$(VENV)/bin/python docs/manual.py
	$(VENV)/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
