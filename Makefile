# Everything a fresh clone needs is set up on the way; nothing is done twice. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FASHION_MNIST := /usr/share/datasets/fashion-mnist
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends
CAN_INSTALL := [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null

# Branch coverage of the pure modules, which pyproject.toml lists under tool.coverage.run.
MIN_COVERAGE_PERCENT := 90

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt proto constraints bench sanitize deploy-check multinode screenshots data redis browser prometheus clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'ARGS="..." is handed on to demo, test and bench.'

demo: $(INSTALLED) ## Meta-learn a small prior, adapt it to unseen tasks, draw the results
	$(BIN)/metasearch demo $(ARGS)

# One thread in each of the processes that test side by side: more would wait for each other. Ray's workers get their share
# of the cores (it gives them less by default), or tests that wait for them run into their time limits.
test: $(INSTALLED) data redis ## Run the tests; without ARGS also hold the coverage of the pure modules
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/pytest $(if $(ARGS),$(ARGS),--numprocesses=2 --dist=loadgroup --no-loadscope-reorder --cov --cov-report=)
	$(if $(ARGS),@true,$(BIN)/coverage report --fail-under=$(MIN_COVERAGE_PERCENT))

check: $(INSTALLED) ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint coordinator/api/proto
	$(BIN)/buf format --diff --exit-code coordinator/api/proto

fmt: $(INSTALLED) ## Format, and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(INSTALLED) ## Generate the stubs of the gRPC protocol
	$(BIN)/python coordinator/api/proto/generate.py

# Of the Python in deploy/Dockerfile. Versions stay until they must change; to renew them all: rm deploy/constraints.txt
constraints: $(INSTALLED) ## Write the versions of all packages in the container images
	$(BIN)/uv pip compile --quiet --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --extra hdf5 --extra s3 --extra sweep --custom-compile-command 'make constraints' \
	    --output-file deploy/constraints.txt pyproject.toml

bench: $(INSTALLED) data redis ## Run every script of tests/benchmarks, one after the other
	@set -e; for script in $(sort $(wildcard tests/benchmarks/bench_*.py)); do \
	    echo "== $$script"; $(BIN)/python "$$script" $(ARGS); \
	done

deploy-check: $(INSTALLED) data redis browser prometheus ## Lint what deploy/ holds, and run it as processes of this machine
	$(BIN)/yamllint --strict docker-compose.yml deploy
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/pytest -m deploy tests/deploy $(ARGS)

multinode: $(INSTALLED) data redis ## Run the service over several hosts, made of network namespaces, and break them (root)
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/pytest -s -m multinode tests/multinode $(ARGS)

screenshots: $(INSTALLED) browser ## Take the pictures of docs/dashboard.md, of a live service
	PYTHONPATH=.:tests $(BIN)/python tests/deploy/screenshots.py $(ARGS)

sanitize: $(INSTALLED) ## Run the native cell's tests on a build with ASan and UBSan
	$(BIN)/python tests/sanitize.py

data: # The real Fashion-MNIST. A missing data set skips tests, it fails nothing.
	@[ -d $(FASHION_MNIST) ] || { \
	    if $(CAN_INSTALL); then apt-get update && $(APT_INSTALL) dataset-fashion-mnist; else false; fi \
	} || echo 'Without Fashion-MNIST the tests and benchmarks on it are skipped; to have it: apt-get install dataset-fashion-mnist (as root)'

redis: # A real Redis for the job store's tests and benchmarks, which start their own. Missing, it skips tests, and fails nothing.
	@command -v redis-server >/dev/null || { \
	    if $(CAN_INSTALL); then apt-get update && $(APT_INSTALL) redis-server; else false; fi \
	} || echo 'Without redis-server the tests on Redis are skipped; to have it: apt-get install redis-server (as root)'

browser: # A browser for tests of the Ray dashboard and its pictures. Missing, it skips tests, and fails nothing.
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	    if $(CAN_INSTALL); then apt-get update && $(APT_INSTALL) chromium; else false; fi \
	} || echo 'Without Chromium the tests of the Ray dashboard are skipped; to have it: apt-get install chromium (as root)'
prometheus: # A real Prometheus for the tests of deploy/, which start their own, and promtool. Missing, it skips tests.
	@command -v promtool >/dev/null || { \
	    if $(CAN_INSTALL); then apt-get update && $(APT_INSTALL) prometheus; else false; fi \
	} || echo 'Without prometheus its tests are skipped; to have it: apt-get install prometheus (as root)'

clean: ## Remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) build dist htmlcov *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache \
	    .import_linter_cache .hypothesis .benchmarks
	rm -f common/nn/native/*.so
	find common workers coordinator tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Without a C++ compiler PyTorch computes the cells.
$(INSTALLED): pyproject.toml $(wildcard common/nn/native/*.cpp common/nn/native/*.h) $(BIN)/pip
	@command -v c++ >/dev/null || { \
	    if $(CAN_INSTALL); then apt-get update && $(APT_INSTALL) g++; else false; fi \
	} || echo 'Without a C++ compiler cells are computed by PyTorch, several times slower; to have one: apt-get install g++ (as root)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) is missing; install Python 3.11 or later' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or later is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    if $(CAN_INSTALL); then apt-get update && $(APT_INSTALL) python3-venv; else false; fi \
	} || { echo 'Python lacks its venv module; on Debian and Ubuntu: apt-get install python3-venv (as root)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
