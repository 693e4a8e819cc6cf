PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs

demo: .venv/demo
	$(BIN)/offramp demo

test: .venv/dev
	$(BIN)/pytest -n 2

check: .venv/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . docs/_build/html
	@echo "the site: $(CURDIR)/docs/_build/html/index.html"

.venv/demo .venv/dev .venv/docs: pyproject.toml constraints.txt
	@echo "installing $(@F) into .venv: some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e ".[$(@F)]"
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing)/' .venv/lib # on all cores; pip uses one
	touch $@
