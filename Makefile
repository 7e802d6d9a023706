# Everything that can be done with the project, one word each. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help engine venv demo test test-unit lint fmt bench test-guest docs clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

engine: ## see to it that a Docker engine answers (installs and starts one if none does; needs root)
	@.ci/engine

venv: ## make .venv with the project and what its tests need
	@.ci/venv

demo: venv ## profile a mount in the embedded sandbox, and a sample in Docker if an engine answers
	@.ci/demo

test: ## the gate: lint, types and all tests (root: also the kernel's and the engine's)
	@.ci/test

test-unit: venv ## the tests that need neither root nor an engine
	@.venv/bin/python -m pytest -q tests/unit

lint: venv ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

fmt: venv ## format the code
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

bench: venv ## measure what tracing costs (ratios of one run)
	@.venv/bin/python tests/benchmarks

test-guest: venv ## run the suite in a stock Debian guest (minutes; needs qemu)
	@if [ -x tests/guest/run.sh ]; then exec tests/guest/run.sh; else \
		echo 'test-guest: tests/guest/run.sh is not in this tree' >&2; exit 1; fi

docs: venv ## write the README's generated parts anew
	@if [ -e tests/readme.py ]; then exec .venv/bin/python tests/readme.py --write; else \
		echo 'docs: tests/readme.py is not in this tree' >&2; exit 1; fi

clean: ## remove caches, the virtual environment and the test images (a running engine stays)
	@if [ -x .venv/bin/python ] && docker info > /dev/null 2>&1; then .venv/bin/python tests/images.py --remove; fi
	@rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find profiler tests -name __pycache__ -type d -prune -exec rm -rf {} +
