# make demo: set up, then name what is in a photo. make test: set up, then run the tests.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup triton demo test coverage mutants soak fuzz lint types docs notebooks notebooks-write check clean

setup: .venv/.done

# constraints.txt holds the versions that the checks run with; users are free within pyproject.toml's ranges.
.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	mkdir -p build/types && ln -sfn "$(CURDIR)" build/types/resnext_hub
	touch $@

# NVIDIA's Triton on the CPU, for tests/test_triton.py. Only the wheel's binaries are used: hence --no-deps.
triton: .venv-triton/.done

.venv-triton/.done: tests/triton-requirements.txt
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install --quiet --disable-pip-version-check --requirement $<
	.venv-triton/bin/pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0
	touch $@

demo: setup
	@photo="$$($(BIN)/python -c 'import matplotlib; print(matplotlib.get_data_path())')/sample_data/grace_hopper.jpg" && \
	$(BIN)/resnext-hub classify "$$photo" --variant resnext_tiny --picture demo_out/grace_hopper.png

test: setup triton
	$(BIN)/pytest -n 2

# Branches of the rooms that meet other people's files and servers. Only tests that run in this process count.
COVERED := checkpoints download entrypoints http_exchange image_sources images manifest manifest_reading predictions \
  preprocessing resampling resnext uris
coverage: setup
	$(BIN)/pytest -n 2 --cov --cov-fail-under=95 $(wildcard $(COVERED:%=tests/test_%.py))

mutants: setup
	$(BIN)/python tests/mutants.py

soak: setup triton
	$(BIN)/pytest -m soak

# Ten minutes each, coverage-guided; what they learn is kept in build/fuzz. (make soak does it without keeping.)
fuzz: setup
	mkdir -p build/fuzz/image build/fuzz/uri
	$(BIN)/python tests/fuzz/fuzz_image.py -max_total_time=600 -print_final_stats=1 build/fuzz/image
	$(BIN)/python tests/fuzz/fuzz_uri.py -max_total_time=600 -print_final_stats=1 build/fuzz/uri

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

docs: setup
	$(BIN)/python docs/tables.py --check
	$(BIN)/python docs/pages.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

notebooks: setup
	$(BIN)/python notebooks/execute.py

# Run them, and keep what they show.
notebooks-write: setup
	$(BIN)/python notebooks/execute.py --write

check: lint types docs notebooks test

clean:
	rm -rf .venv .venv-triton build demo_out
