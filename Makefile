# hostmesh: every task of this repository is one command; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
export REGISTRY KEEP

.PHONY: help setup native demo demo-down test soak lint check bench clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## system packages (apt, where root or sudo is there), venv, hash-pinned dependencies, compiled modules
	@$(PY) packaging/native/build.py

native: .venv/.ready ## compile the data plane's hot modules (part of setup); fails where that cannot be done
	@$(PY) packaging/native/build.py --required

.venv/.ready: packaging/requirements/dev.txt pyproject.toml .ci/setup .ci/system-packages
	@.ci/setup

demo: .venv/.ready ## four hosts, a mesh between them, every line measured (KEEP=1, REGISTRY=consul)
	@$(PY) -m tests.hosts.demo

demo-down: ## end a demo that KEEP=1 left running
	@$(PY) -m tests.hosts.demo --down

test: setup ## all tests, with the real Envoy, Consul, nftables and network namespaces
	@.ci/test

soak: setup ## a hundred thousand connections and a thousand configurations through one worker, which must not grow
	@HOSTMESH_SOAK=100000 HOSTMESH_SOAK_CHANGES=1000 $(PY) -m pytest -q tests/attack/test_soak.py

lint: .venv/.ready ## ruff, mypy --strict, the direction of imports
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

check: lint test ## lint and test: what to run before a commit

bench: setup ## ours against the real Envoy, in turn, on this machine
	@$(PY) -m bench

clean: ## remove what setup and tests made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results agent/_native
