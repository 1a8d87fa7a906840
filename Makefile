# Each target sets up all that it needs, in .venv, as an ordinary user.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := onnx,litert,coordinator,models
TFLITE_PYTHON ?= python3.11
TFLITE_VENV := .venv-tflite
FRAMEWORKS_VENV := .venv-frameworks
PEERS_VENV := .venv-peers
JOBS ?= 2

.PHONY: hil setup demo demo-mixed test test-frameworks test-tflite test-aarch64 test-releases check bench bench-peers chaos soak zoo format clean

setup: $(VENV)/.ready

# Debian splits ensurepip off into a package of its own: the environment is made without pip, and the
# system's pip installs a newer one into it.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]' --group dev
	$(BIN)/lichen models fetch || echo 'without the data sets motion and shuttle: lichen models fetch tries again'
	touch $@

# Google's last interpreter of its own name: Python 3.11 and numpy 1.x, hence an environment beside the other.
# Nothing in it runs the builder but the tests.
$(TFLITE_VENV)/.ready: pyproject.toml
	@$(TFLITE_PYTHON) -c '' || { echo 'error: tflite_runtime needs Python 3.11: make TFLITE_PYTHON=/path/to/python3.11'; exit 1; }
	$(TFLITE_PYTHON) -m venv --without-pip $(TFLITE_VENV)
	$(PYTHON) -m pip --python $(TFLITE_VENV)/bin/python install --quiet --upgrade 'pip>=25.1'
	$(TFLITE_VENV)/bin/python -m pip install --quiet --editable '.[tflite,models]' --group test
	touch $@

# The real PyTorch, Keras, scikit-learn, transformers and Flower: a gigabyte, hence apart from what everyone needs.
# On some platforms the index's own torch brings CUDA along; name an index or folder of CPU builds to pip
# (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) and it is preferred.
$(FRAMEWORKS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv --without-pip $(FRAMEWORKS_VENV)
	$(PYTHON) -m pip --python $(FRAMEWORKS_VENV)/bin/python install --quiet --upgrade 'pip>=25.1'
	$(FRAMEWORKS_VENV)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]' --group frameworks
	touch $@

# Flower with its simulation engine, Ray: apart too, since it holds back packages that the others need newer.
$(PEERS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv --without-pip $(PEERS_VENV)
	$(PYTHON) -m pip --python $(PEERS_VENV)/bin/python install --quiet --upgrade 'pip>=25.1'
	$(PEERS_VENV)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]' --group peers
	touch $@

demo: setup
	$(BIN)/lichen demo $(ARGS)

# Every runtime in one federation: onnx, litert, numpy of .venv, and tflite of an environment of its own.
demo-mixed: setup $(TFLITE_VENV)/.ready
	$(BIN)/lichen demo --runtime mixed $(ARGS)

# Files of tests go to JOBS processes.
test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-frameworks: $(FRAMEWORKS_VENV)/.ready
	KERAS_BACKEND=torch $(FRAMEWORKS_VENV)/bin/python -m pytest tests/frameworks -n $(JOBS) --dist loadfile $(ARGS)

# The runtimes' contract with the real tflite_runtime in it.
test-tflite: $(TFLITE_VENV)/.ready
	$(TFLITE_VENV)/bin/python -m pytest tests/models/test_runtime_contract.py tests/models/test_tflite_runtimes.py -k tflite $(ARGS)

# On an emulated 64-bit ARM: as root on Debian, with mmdebstrap and qemu-user-static. ARGS="armhf s390x": more.
test-aarch64: setup
	$(BIN)/python -m hil.emulation aarch64 $(ARGS)

# Another release and this one in one fleet, and from one to the other on the same stores:
# RELEASE is a venv in which it is installed, or a commit.
test-releases: setup
	$(BIN)/python -m hil.releases $(RELEASE) $(ARGS)

check: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m hil.bench $(ARGS)

# The section peers of the benches, beside Flower's simulation; the other sections keep their figures.
bench-peers: $(PEERS_VENV)/.ready
	$(PEERS_VENV)/bin/python -m hil.bench --only peers $(ARGS)

# A fleet of real processes is broken for three minutes, and its books are read: docs/reliability.md. As root
# its disks fill up too; with a C compiler its clocks jump. ARGS="--seed N" repeats a run.
chaos: setup
	$(BIN)/python -m pytest -q -m slow -n $(JOBS) --dist loadfile >&2
	$(BIN)/python -m hil.chaos --minutes 3 $(ARGS)

# Every scenario on boards: processes and network namespaces unless BOARDS="process qemu" names others; each kind
# in a process of its own. Network namespaces need root. ARGS="--boards-file FILE" lists the boards of ssh.
BOARDS ?= $(if $(filter 0,$(shell id -u)),process netns,process)
hil: setup
	$(BIN)/python -m pytest hil/boards $(BOARDS:%=--board %) -n $(words $(BOARDS)) --dist loadgroup --hil-report hil-report.html $(ARGS)

# The same for an hour, again and again, each time with another seed, until one does not balance.
soak: setup
	while $(BIN)/python -m hil.chaos --minutes 60 $(ARGS); do :; done; exit 1

# The artifacts that are in the repository, from the code that makes them: after every change of the builder.
zoo: setup
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m models.zoo $(ARGS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(TFLITE_VENV) $(FRAMEWORKS_VENV) $(PEERS_VENV) .emulation .releases build dist demo-out
