# Two targets do everything: `make run` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# The page is built anew when it is made of something else.
PAGE := $(shell find toolscore/dashboard/src toolscore/dashboard/public -type f 2>/dev/null) \
  toolscore/dashboard/package-lock.json toolscore/dashboard/vite.config.ts toolscore/dashboard/index.html

# The tests start hundreds of programs: none of them should compile its modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all test-fast storm soak interop known-servers well-known replicas check pages types lock format clean

run: $(VENV)/.installed
	@$(BIN)/toolscore serve

# All but the long tests.
test: $(VENV)/.tested
	@$(MAKE) --no-print-directory check
	@$(BIN)/pytest -n 3 --cov --cov-report= --cov-fail-under=74 -m "not long"
	@echo 'The long tests (replicas, kills, storms, browsers, peers, conformance, ...) are in `make test-all`.'

test-all: $(VENV)/.tested
	@$(MAKE) --no-print-directory check
	@$(BIN)/pytest -n 4 --cov --cov-report=

# What one runs while working: no network, no processes but the sandbox's own.
test-fast: $(VENV)/.tested
	@$(MAKE) --no-print-directory check
	@$(BIN)/pytest -q -n 2 -m fast

# Thousands of calls to a server that fails in every way; prints how they ended.
storm: $(VENV)/.tested
	@$(BIN)/pytest -q tests/calls/test_storm.py

# The clients that people use, each in an environment of its own: CLIENTS="smolagents typescript-2" chooses.
interop: $(VENV)/.tested
	@PYTHONPATH=tests $(BIN)/python tests/interop/interop.py $(CLIENTS)

# Twenty-three servers that people use, in one file: do they come up, how soon is the first answer, what do they cost?
known-servers: $(VENV)/.tested
	@PYTHONPATH=tests $(BIN)/python tests/interop/known_servers.py

# The servers that `toolscore install NAME` knows by name: does each install, as far as an account allows?
well-known: $(VENV)/.tested
	@PYTHONPATH=tests $(BIN)/python tests/interop/well_known.py

# Postgres, Redis, haproxy and three gateways on loopback, for trying; Ctrl-C stops all of it.
COUNT ?= 3
replicas: $(VENV)/.installed
	@$(BIN)/toolscore bench rig --count $(COUNT)

# A share LOAD of what a gateway takes at most, with faults, for MINUTES; says what grew.
MINUTES ?= 60
LOAD ?= 0.5
soak: $(VENV)/.tested
	@$(BIN)/python tests/soak.py --minutes $(MINUTES) --load $(LOAD)

check: $(VENV)/.tested
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@cd toolscore/dashboard && ../../.cache/servers/node node_modules/typescript/bin/tsc --noEmit

format: $(VENV)/.tested
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# What is made from the rules in the code: config/toolscore.yaml, the tables of docs/settings.md.
pages: $(VENV)/.installed
	@$(BIN)/python -m toolscore.app.pages

# The page's types, of the gateway's own OpenAPI.
types: $(VENV)/.tested
	@PYTHONPATH=tests $(BIN)/python tests/dashboard/types_of_api.py

# uv installs in seconds what takes pip a minute; where only pip's own configuration reaches a registry, pip does it.
# $(call installs,LOCK): exact versions, checked by their hashes.
define installs
$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r $(1) \
  || { echo "uv could not: pip tries ..."; $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(1); }
endef

# What is needed to run it.
$(VENV)/.installed: requirements.lock pyproject.toml build_hook.py toolscore/__init__.py \
  mcp_servers/python_executor/sandbox/_forkserver.c $(PAGE)
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@$(call installs,requirements.lock)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What the tests need beside it.
$(VENV)/.tested: $(VENV)/.installed tests/requirements.lock tests/install_servers.py toolscore/dashboard/package-lock.json
	@echo "Setting up what the tests need (once) ..."
	@$(call installs,tests/requirements.lock)
	@$(PYTHON) tests/install_servers.py $(BIN)/python
	@touch $@

# Exact versions of what pyproject.toml asks for.
lock: $(VENV)/.installed
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  --extra postgres --extra bench --extra tracing --extra reasoning --group build pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  --group dev -c requirements.lock -o tests/requirements.lock

clean:
	rm -rf toolscore/dashboard/node_modules toolscore/dashboard/dist $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
