PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check

demo: .venv/demo
	$(BIN)/offramp demo

test: .venv/dev
	$(BIN)/pytest -n 2

check: .venv/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

.venv/demo .venv/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e ".[$(@F)]"
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing)/' .venv/lib # on all cores; pip uses one
	touch $@
