# Each target sets up all that it needs, in .venv, as an ordinary user.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := onnx,litert,coordinator,models

.PHONY: setup demo test check bench format clean

setup: $(VENV)/.ready

# Debian splits ensurepip off into a package of its own: the environment is made without pip, and the
# system's pip installs a newer one into it.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]' --group dev
	touch $@

demo: setup
	$(BIN)/lichen demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m hil.bench $(ARGS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo-out
