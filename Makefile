PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs

demo: .venv/demo
	$(BIN)/offramp demo

test: .venv/bytecode
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
	$(BIN)/pip install --quiet --upgrade pip # a venv has the one of its Python, which may be years old and slow
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e ".[$(@F)]"
	touch $@

# On all cores; pip compiles on one. What is left out is large and little of it is imported.
.venv/bytecode: .venv/dev
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing|transformers/models|ray/(llm|rllib|train|tune))/' .venv/lib
	touch $@
