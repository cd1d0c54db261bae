# From a fresh clone, with Python 3.11 or later and nothing else: `make demo`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
CORES  ?= all
BIN    := $(CURDIR)/$(VENV)/bin
STAMP  := $(VENV)/installed.txt
export PATH := $(BIN):$(PATH)

.PHONY: demo test test-quick test-slow test-ranges test-wheel docs dist lint bench test-cluster test-nextflow install schema clean

demo: install  ## install, then the whole workflow on the embedded demo data
	snakemake --cores $(CORES) --rerun-incomplete --quiet rules host

# Files go to workers in the order of tests/conftest.py; a file's fixtures are made once.
PYTEST := pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --ignore=tests/cluster

test: install  ## install, then all tests that need neither a cluster nor Nextflow, in parallel
	$(PYTEST) $(TESTS)

test-quick: install  ## those of every module that take a second or so each
	$(PYTEST) --ignore=tests/nextflow -m "not cluster and not nextflow and not slow and not thorough" $(TESTS)

test-slow: install  ## what computes for minutes: the whole demo, fits of real size, real data beside the clone
	pytest -q -m slow $(TESTS)

lint: install  ## what must pass before a change is merged, besides the tests
	ruff check .
	ruff format --check .
	snakefmt --check --line-length 120 Snakefile workflow
	mypy
	snakemake --lint

docs: install  ## the site, in docs/_build/html; tutorials run, warnings are errors, links are checked
	rm -rf docs/api/generated
	sphinx-build -W --keep-going -q -b html docs docs/_build/html
	python docs/check_links.py docs/_build/html

test-ranges:  ## all of make test with the newest (or RESOLUTION=lowest-direct: oldest) versions that pyproject.toml allows; needs uv
	uv venv -q --clear .venv-ranges && uv pip install -q --python .venv-ranges/bin/python --resolution $(or $(RESOLUTION),highest) -e '.[workflow,dev]'
	.venv-ranges/bin/python -m $(PYTEST)

test-wheel: dist  ## every tutorial as pasted from its page, where nothing but the wheel is installed; needs uv
	uv venv -q --clear .venv-wheel && uv pip install -q --python .venv-wheel/bin/python "$$(ls -t dist/*.whl | head -1)[workflow]" ipython
	for page in $(or $(PAGES),library programs workflow across); do \
	    (cd "$$(mktemp -d)" && PATH=$(CURDIR)/.venv-wheel/bin:$$PATH MPLBACKEND=agg python $(CURDIR)/docs/run_page.py $(CURDIR)/docs/tutorials/$$page.md) || exit 1; \
	done

dist: install  ## wheel and sdist in dist/
	uv build -q || { python -m pip install -q build && python -m build; }

bench: install  ## the measurements behind the README (tables on stdout)
	for script in tests/benchmarks/*.py; do echo "== $$script"; python $$script || exit 1; done

test-cluster: install  ## on a real Slurm of this machine (root on Debian; see docs/cluster.md)
	timeout 5400 pytest -q tests/cluster -m "cluster or not cluster" $(TESTS)

test-nextflow: install  ## under a real Nextflow (Java 17 and Maven; root on Debian for its Slurm; see docs/nextflow.md)
	timeout 5400 pytest -q tests/nextflow -m nextflow $(TESTS)

schema: install  ## write workflow/schemas/config.schema.yaml and config/config.yaml anew from ldvae/config/options.py
	ldvae schema > workflow/schemas/config.schema.yaml
	ldvae schema --commented > config/config.yaml

# Installs only when requirements.txt or pyproject.toml differ from what was last installed. uv is used when it is there.
install:
	@cat requirements.txt pyproject.toml | cmp -s - $(STAMP) || $(MAKE) --no-print-directory reinstall

.PHONY: reinstall
reinstall:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ldvae needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null; then \
	    uv pip install -q --python $(VENV)/bin/python -r requirements.txt && uv pip install -q --python $(VENV)/bin/python --no-deps -e .; \
	else \
	    { $(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(VENV)/bin/python -m ensurepip; } && \
	    $(VENV)/bin/python -m pip install -q -r requirements.txt && $(VENV)/bin/python -m pip install -q --no-deps -e .; \
	fi
	cat requirements.txt pyproject.toml > $(STAMP)

clean:  ## remove results of the demo, not the environment
	rm -rf results logs benchmarks checkpoints
