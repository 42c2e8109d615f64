# make demo: set up what a user needs, then classify a photo. make test: set up what a developer needs, then run the tests.
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done),python3.11)
BIN := .venv/bin

.PHONY: setup triton tools demo quick slow test test-oldest coverage soak fuzz lint types docs notebooks notebooks-write demo-page page package check \
  lock audit audit-online rename verify-weights clean

# The environments hold exactly the files that locks/ names, each checked by its sha256. --no-deps: a lock is complete, so
# pip must not resolve it again. Resolving is what broke: for a requirement with an extra (coverage[toml]) pip 23.2 ignores
# the pin of the package without it, takes the newest release and stops. "pip check" then verifies that nothing is missing.
# Works with pip 23.2.1, which Python 3.11.5 brings, and newer.
INSTALL := pip install --quiet --disable-pip-version-check --no-deps
LOCKED := $(INSTALL) --only-binary :all: --require-hashes --requirement
CHECK := pip check --disable-pip-version-check

define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(1)
endef

# make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu: torch and torchvision, in the locked versions, from that index
# instead of the CUDA builds of the lock. There are no hashes of what it offers here: you trust the index.
ifdef TORCH_INDEX
define install # environment, lock
	$(1)/bin/$(INSTALL) --only-binary :all: --index-url $(TORCH_INDEX) \
	  $$(sed -nE 's/^(torch|torchvision)(==[^ ]+).*/\1\2/p' locks/$(2).txt)
	awk '/^[a-z0-9]/ { keep = !/^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ } keep' locks/$(2).txt \
	  > $(1)/without_torch.txt
	$(1)/bin/$(LOCKED) $(1)/without_torch.txt
endef
else
define install
	$(1)/bin/$(LOCKED) locks/$(2).txt
endef
endif

# What a user needs: pyproject.toml's dependencies and nothing else.
.venv-core/.done: pyproject.toml locks/core.txt
	$(call environment,.venv-core)
	$(call install,.venv-core,core)
	.venv-core/bin/$(INSTALL) --no-build-isolation --editable .
	.venv-core/bin/$(CHECK)
	touch $@

setup: .venv/.done

.venv/.done: pyproject.toml locks/dev.txt
	$(call environment,.venv)
	$(call install,.venv,dev)
	$(BIN)/$(INSTALL) --no-build-isolation --editable .
	$(BIN)/$(CHECK)
	mkdir -p build/types && ln -sfn "$(CURDIR)" build/types/resnext_hub
	touch $@

# NVIDIA's Triton on the CPU, for tests/deploy/test_triton.py. Only the wheel's binaries are used, so "pip check" would complain.
triton: .venv-triton/.done

.venv-triton/.done: locks/triton.txt
	$(call environment,.venv-triton)
	.venv-triton/bin/$(LOCKED) locks/triton.txt
	touch $@

tools: .venv-tools/.done

.venv-tools/.done: locks/tools.txt
	$(call environment,.venv-tools)
	.venv-tools/bin/$(LOCKED) locks/tools.txt
	.venv-tools/bin/$(CHECK)
	touch $@

demo: .venv-core/.done
	.venv-core/bin/resnext-hub classify demo/coffee.jpg --variant resnext_tiny --picture demo_out/coffee.png

# Keep the bytecode of the tests and of this package: without it, every worker and every process that a test starts
# compiles them again.
quick slow test soak: export PYTHONDONTWRITEBYTECODE :=

# After every edit: the tests that tests/support/slow.txt does not name.
quick: setup
	$(BIN)/pytest -n 2 -p no:nbmake -m "not slow and not soak"

# Write tests/support/slow.txt anew, from the processor time of each test.
slow: setup triton
	WRITE_SLOW=1 $(BIN)/pytest -n 2

test: setup triton
	$(BIN)/pytest -n 2

# Branches of the rooms that meet other people's files and servers. Only tests that run in this process count.
coverage: setup
	$(BIN)/pytest -n 2 --cov --cov-fail-under=95 tests/net tests/models tests/processing_utils tests/inference/test_engines.py

# The oldest versions that pyproject.toml allows. Not part of check: torch's are 4 GB to fetch, 8 GB in the environment.
test-oldest: .venv-oldest/.done triton
	.venv-oldest/bin/pytest -n 2 -W ignore::DeprecationWarning  # old packages meet the newest of what they need

.venv-oldest/.done: pyproject.toml locks/oldest.txt
	$(call environment,.venv-oldest)
	.venv-oldest/bin/$(LOCKED) locks/oldest.txt
	.venv-oldest/bin/$(INSTALL) --no-build-isolation --editable .
	.venv-oldest/bin/$(CHECK)
	touch $@

soak: setup triton
	$(BIN)/pytest -m soak

# Ten minutes each, coverage-guided; what they learn is kept in build/fuzz. (make soak does it without keeping.)
fuzz: setup
	for kind in image uri data; do mkdir -p build/fuzz/$$kind && $(BIN)/python tests/fuzz/fuzz.py $$kind \
	  -max_total_time=600 -print_final_stats=1 build/fuzz/$$kind || exit; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The wrapper would ask PyPI for a newer release of itself.
types: setup
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

docs: setup
	$(BIN)/python maintenance/write_hubconf.py --check
	$(BIN)/python maintenance/write_table.py --check
	$(BIN)/python maintenance/write_pages.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

notebooks: setup
	$(BIN)/python notebooks/execute.py

# Run them, and keep what they show.
notebooks-write: setup
	$(BIN)/python notebooks/execute.py --write

# Gradio wants an older Pillow than the checks: its environment lies over the first and holds only what differs.
demo-page: .venv-demo/.done

.venv-demo/.done: .venv/.done locks/demo.txt
	$(call environment,.venv-demo)
	printf 'import site; site.addsitedir("%s")\n' "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
	  > "$$(.venv-demo/bin/python -c 'import site; print(site.getsitepackages()[0])')/first_environment.pth"
	.venv-demo/bin/$(LOCKED) locks/demo.txt
	.venv-demo/bin/$(INSTALL) --no-build-isolation --editable .
	.venv-demo/bin/$(CHECK)
	touch $@

# The web page in a headless Chromium; its screenshots are in build/screenshots. And hostile images, with the page's Pillow.
PAGE_TESTS := .venv-demo/bin/python -m pytest tests/demo/test_demo_page.py tests/docs/test_try_page.py \
  tests/test_telemetry.py::test_the_page tests/processing_utils/test_hostile_images.py
page: demo-page
	@command -v chromium > /dev/null || { echo 'make page needs Chromium: apt-get install chromium fonts-nanum' >&2; exit 1; }
	$(PAGE_TESTS) $(ARGUMENTS)

# The source distribution and the wheel, in build/dist. --no-isolation: with the setuptools of locks/tools.txt, checked by hash.
package: tools
	rm -rf build/dist
	.venv-tools/bin/python -m build --no-isolation --outdir build/dist
	.venv-tools/bin/twine check --strict build/dist/*
	.venv-tools/bin/check-wheel-contents build/dist/*.whl

# Everything that CI runs (.ci/run). Without a browser: make check PAGE=
PAGE := page
check: lint types docs notebooks package $(PAGE) test

# Versions stay as they are where pyproject.toml allows; UPGRADE=--upgrade takes the newest, UPGRADE='-P NAME' one package's.
LOCK = .venv-tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes $(UPGRADE) \
  --custom-compile-command 'make lock'
lock: tools
	$(LOCK) pyproject.toml --extra dev --output-file locks/dev.txt
	$(LOCK) pyproject.toml --constraint locks/dev.txt --output-file locks/core.txt
	$(LOCK) pyproject.toml --extra dev --output-file locks/oldest.txt --resolution lowest-direct
	$(LOCK) locks/demo.in --output-file locks/demo.txt
	$(LOCK) locks/triton.in --output-file locks/triton.txt
	$(LOCK) locks/tools.in --output-file locks/tools.txt

# Known vulnerabilities of the locked versions: of those in locks/advisories.tsv, without a network. audit-online asks PyPI;
# --strict: a package that could not be looked up is a failure. --ignore-vuln: accepted, see locks/advisories.tsv.
audit: setup
	$(BIN)/python maintenance/audit.py

audit-online: tools
	for lock in dev core demo triton tools oldest; do \
	  .venv-tools/bin/pip-audit --strict --disable-pip --require-hashes --requirement locks/$$lock.txt \
	    $$(awk -F '\t' '$$3 && !/^#/ { print "--ignore-vuln " $$2 }' locks/advisories.tsv) || exit; \
	done

# Write OWNER, a user or an organisation on GitHub, wherever the present owner of this repository is named.
rename: setup
	$(BIN)/python maintenance/rename.py "$(OWNER)"
	$(BIN)/ruff format --quiet .

# Every published file: fetched, held against the manifest, hashed whole. ARGUMENTS=--write puts the hashes into it.
verify-weights: setup
	$(BIN)/python maintenance/verify_weights.py $(ARGUMENTS)

clean:
	rm -rf .venv .venv-core .venv-demo .venv-triton .venv-tools .venv-oldest build demo_out
