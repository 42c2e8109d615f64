# make demo: set up, then name what is in a photo. make test: set up, then run the tests.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup triton demo test soak lint types docs notebooks notebooks-write demo-page page check clean

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

soak: setup triton
	$(BIN)/pytest -m soak

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

# Gradio wants an older Pillow than the checks: its environment lies over the first and holds only what differs.
demo-page: .venv-demo/.done

.venv-demo/.done: .venv/.done demo/constraints.txt
	$(PYTHON) -m venv .venv-demo
	printf 'import site; site.addsitedir("%s")\n' "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
	  > "$$(.venv-demo/bin/python -c 'import site; print(site.getsitepackages()[0])')/first_environment.pth"
	.venv-demo/bin/pip install --quiet --disable-pip-version-check --constraint demo/constraints.txt gradio playwright
	touch $@

# The web page in a headless Chromium (apt-get install chromium); its screenshots are in build/screenshots.
page: demo-page
	.venv-demo/bin/python -m pytest tests/test_demo_page.py

check: lint types docs notebooks test

clean:
	rm -rf .venv .venv-demo .venv-triton build demo_out
