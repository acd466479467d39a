# Two commands do everything: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
# The newest torch that this release was tested with; users are not bound to it.
CONSTRAINTS := constraints.txt

.PHONY: demo test bench install install-dev clean

demo: install
	$(BIN)/tomoloc demo -o demo

test: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile

bench: install-dev
	failed=0; for script in benchmarks/*.py; do \
	  echo "== $$script"; $(BIN)/python $$script || failed=1; done; exit $$failed

install: .venv/installed
install-dev: .venv/installed-dev

.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e .
	touch $@

.venv/installed-dev: .venv/installed pyproject.toml $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
