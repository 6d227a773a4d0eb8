# Two commands do everything on a fresh machine that has Python 3.11 or newer:
#   make demo    the main job, on this machine, no cluster
#   make test    all tests this machine can run; builds what the cluster tests need, once
PYTHON ?= python3
BIN := .venv/bin
# An inherited PYTHONDONTWRITEBYTECODE would compile every module again in every process.
export PYTHONDONTWRITEBYTECODE :=
UV := $(shell command -v uv || echo $(BIN)/uv)
TESTS ?= tests
# `make test PARTS=as-they-are` builds nothing.
PARTS ?= build

.PHONY: help demo demo-rollback demo-clean test parts lint format lock schema wheel clean
.DEFAULT_GOAL := help

help: ## say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/installed: requirements/uv.txt requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/installed ## take a model through its gates to production, on this machine
	$(BIN)/python examples/demo.py

demo-rollback: .venv/installed ## the same with a second build that breaks after promotion
	$(BIN)/python examples/demo.py --rollback

demo-clean: .venv/installed ## stop what the demo left serving and forget it
	$(BIN)/python examples/demo.py --clean

test: .venv/installed ## all tests this machine can run; says what it skips and why
ifeq ($(TESTS)-$(PARTS),tests-build)
	$(BIN)/python tests/cluster/build_tools.py --if-possible
endif
	$(BIN)/python -m pytest $(TESTS) -n auto --dist loadgroup -W error --timeout 600 -rs

parts: .venv/installed ## build the real control plane and Helms of the cluster tests, with Go
	$(BIN)/python tests/cluster/build_tools.py

lint: .venv/installed ## style, types and the layers of the house
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: .venv/installed ## resolve the lock files again
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--upgrade pyproject.toml -o requirements/run.txt
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--upgrade pyproject.toml --group dev -c requirements/run.txt -o requirements/dev.txt
	grep -A 1000 '^uv==' requirements/dev.txt | awk 'NR > 1 && /^[a-z]/ {exit} {print}' > requirements/uv.txt

schema: .venv/installed ## generate the JSON Schema of rollout.yaml again
	$(BIN)/python -m vllm_rollout.policy.schema

wheel: .venv/installed ## build the wheel into dist/
	$(UV) build --quiet --wheel --python $(BIN)/python --no-build-isolation --out-dir dist

clean: ## remove the environment and everything generated
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
