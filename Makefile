# Two commands do everything on a fresh machine that has Python 3.11 or newer:
#   make demo    the main job, on this machine, no cluster
#   make test    the tests of everything that needs no built parts, in minutes
# `make test-all` adds the real control plane and Helm, and `make test-exhaustive` every variant.
PYTHON ?= python3
BIN := .venv/bin
# An inherited PYTHONDONTWRITEBYTECODE would compile every module again in every process.
export PYTHONDONTWRITEBYTECODE :=
UV := $(shell command -v uv || echo $(BIN)/uv)
TESTS ?= tests
# Left to make test-all: a part that is built (cluster, helm), a program of Debian's, minutes of rollouts.
LEFT := cluster or helm or prometheus or browser or registry or long
PYTEST := $(BIN)/python -m pytest $(TESTS) -n auto -W error --timeout 600 -rs
# Tests that measure what a server can do: others beside them would be measured too. 5: there are none.
ALONE := VLLM_ROLLOUT_REQUIRE=all $(PYTEST) -n 0 -m alone || test $$? = 5

.PHONY: help demo demo-rollback demo-clean test test-all test-exhaustive parts lint audit format lock schema docs picture wheel clean
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

test: .venv/installed ## the tests that need no built parts; says what it skips and why
	@echo "left to make test-all: real control plane, Helm, Prometheus, browser, registry, long rollouts"
	$(PYTEST) -m "not ($(LEFT) or exhaustive)"

test-all: parts ## these, and those on a real control plane with real Helm; nothing is skipped
	VLLM_ROLLOUT_REQUIRE=all $(PYTEST) -m "not (exhaustive or alone)"
	$(ALONE)

test-exhaustive: parts ## these, every crash cell on real processes, and both Helms everywhere
	VLLM_ROLLOUT_REQUIRE=all $(PYTEST) -m "not alone"
	$(ALONE)

parts: .venv/installed ## build that control plane and both Helms with Go, once, in some 15 minutes; fetch axe-core
	$(BIN)/python tests/support/axe/__init__.py
	$(BIN)/python tests/cluster/build_tools.py

lint: .venv/installed ## style, types, the layers of the house and its plain words
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/lint/plain_words.py

# Not part of .ci/run: its data is PyPI's, which not every network has. What could not be asked about
# fails it (--strict), so that no answer is not taken for a clean one.
audit: .venv/installed ## ask PyPI for known vulnerabilities of what is locked (needs the network)
	$(UV) tool run --from pip-audit==2.10.1 pip-audit --strict --disable-pip --require-hashes -r requirements/run.txt

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

docs: schema ## generate the reference parts of the documentation, and the schema, again
	$(BIN)/python docs/generate.py

picture: .venv/installed ## make the picture of a report that README shows again (needs chromium)
	VLLM_ROLLOUT_REQUIRE=all VLLM_ROLLOUT_PICTURE=write $(BIN)/python -m pytest tests/report/test_picture.py -q -m browser -W error

wheel: .venv/installed ## build the wheel into dist/
	$(UV) build --quiet --wheel --python $(BIN)/python --no-build-isolation --out-dir dist

clean: ## remove the environment and everything generated
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
