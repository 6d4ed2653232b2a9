# Two commands matter: `make run` and `make test`. Both set up what they need.
SHELL := /bin/bash
PYTHON_HERE := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:  ## Says what can be made (this text).
	@sed -nE 's/^([a-z-]+):.*## */\1 /p' $(MAKEFILE_LIST) | \
		while read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

.PHONY: run
run:  ## Sets up and runs the whole loop: `hrapaq up`. ARGS="--minutes 3 --json out.json" go to it.
	@deploy/setup.sh run
	@echo 'While it runs, in another terminal: .venv/bin/hrapaq status (or nodes, vms, plan, --help)'
	@.venv/bin/hrapaq up $(ARGS)

.PHONY: test
test: setup  ## Sets up and runs all tests (minutes). ARGS="-k name" go to pytest.
	@env -u HRAPAQ_TORCH -u HRAPAQ_SYSTEM $(PYTHON_HERE) -m pytest $(ARGS)

.PHONY: test-nested
test-nested: setup  ## All scenarios on a real nested KVM stack (root, QEMU; much longer).
	@HRAPAQ_NESTED=full $(PYTHON_HERE) -m pytest tests/nested $(ARGS)

.PHONY: bench
bench:  ## Prints tables of speed and size, beside CP-SAT, HiGHS and numba. TRACES=DIR: real demand.
	@deploy/setup.sh bench
	@set -e; for script in tests/bench/bench_*.py; do \
		case $$script in *allocate*|*bench_forecast.py) set -- $(if $(TRACES),--traces "$(TRACES)") ;; *) set -- ;; esac; \
		echo "== $$script"; $(PYTHON_HERE) $$script "$$@"; done

.PHONY: fuzz
fuzz: setup  ## A million random hosts and trees against an oracle. ARGS="--hosts 9999 --seed 2".
	@$(PYTHON_HERE) tests/fuzz/fuzz_allocate.py $(ARGS)

.PHONY: lint
lint: setup  ## Formatting, lint, types, import contracts, generated parts: as CI checks them.
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON_HERE) proto/generate.py --check
	$(PYTHON_HERE) deploy/readme.py --check

.PHONY: setup
setup:  ## Environment and packages for running, testing and checking.
	@deploy/setup.sh dev

.PHONY: clean
clean:  ## Removes the environment and all caches; keeps what runs have written elsewhere.
	rm -rf .venv build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
