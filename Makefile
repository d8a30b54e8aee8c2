# Every command of the project. Each is one line that also works without make, inside the environment of `make install`.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PACKAGES := services shared cli migrations simulator devstack benchmarks tests
# Which broker: embedded (default), apache or docker. DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS win over it.
export KAFKA ?=
ARGS ?=
# Tests wait more than they work: more of them at a time than there are cores.
JOBS ?= 4
BENCHES := $(shell sed -n 's/^bench-\([a-z-]*\):.*/\1/p' Makefile)

.DEFAULT_GOAL := help
.PHONY: help install demo chaos up bench $(addprefix bench-,$(BENCHES)) test test-integration lint format lock lock-peers audit clean

help: ## show this list
	@echo "Allegro Orders Backup. Nothing but $(PYTHON) (3.11 or newer) is needed; the rest is installed into .venv."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  CHAOS=1|all                    kill -9 the services, or the broker and PostgreSQL as well (demo)"
	@echo "  KAFKA=embedded|apache|docker   which broker to start (demo, up, test)"
	@echo "  ARGS='...'                     passed on to pytest, the demo or up (ARGS=--help)"

install: $(STAMP) ## create .venv from the hashed lock files (done only when they change)

$(STAMP): requirements/uv.lock requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP) ## run everything against a simulated Allegro and compare the result
	@$(BIN)/python -m devstack demo $(if $(filter-out 0,$(CHAOS)),--chaos $(if $(filter all,$(CHAOS)),all,services)) $(ARGS)

chaos: $(STAMP) ## break everything that can break for MINUTES=3, by SEED=7, then compare (ARGS=--help)
	@$(BIN)/python -m devstack chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

up: $(STAMP) ## run everything and stay; data in .data/ (or DATA_DIR), settings from .env
	@$(BIN)/python -m devstack up $(ARGS)

bench-writer: $(STAMP) ## measure the writer against COPY
	@$(BIN)/python -m benchmarks.writer $(ARGS)

test: $(STAMP) ## run the tests (KAFKA=apache: on Apache Kafka; JOBS=0: one after the other)
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-integration: $(STAMP) ## run only the tests that talk to a real PostgreSQL or broker
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m "integration or e2e" $(ARGS)

bench-limits: $(STAMP) ## measure how much of Allegro's allowance is used (ARGS=--help)
	@$(BIN)/python -m benchmarks.limits $(ARGS)

bench-requests: $(STAMP) ## count the requests an order costs: loads, bursts, catching up, reconciliation (ARGS=--help)
	@$(BIN)/python -m benchmarks.requests $(ARGS)

bench-freshness: $(STAMP) ## measure how long new events wait until they are committed (ARGS=--help)
	@$(BIN)/python -m benchmarks.freshness $(ARGS)

bench-fairness: $(STAMP) ## measure how long new orders wait while 100,000 are loaded for another seller (ARGS=--help)
	@$(BIN)/python -m benchmarks.fairness $(ARGS)

bench-scale: $(STAMP) ## measure replicas, 10,000 sellers, a million messages of lag, idling (ARGS=--help)
	@$(BIN)/python -m benchmarks.scale $(ARGS)

bench-bulk-load: $(STAMP) ## measure the memory of a load of 100,000 orders, killed in the middle
	@$(BIN)/python -m benchmarks.bulk_load $(ARGS)

bench-pipeline: $(STAMP) ## measure the whole way against dlt, PyAirbyte and Singer (installed into .bench/)
	@$(BIN)/python -m benchmarks.pipeline $(ARGS)

bench: $(STAMP) ## run every benchmark (or BENCHES="writer api"), results into docs/benchmarks.md
	@$(BIN)/python -m benchmarks.record $(BENCHES)

bench-floor: $(STAMP) ## show what each stage's time goes into; flame graphs in docs/flames/ (ARGS=--help)
	@$(BIN)/python -m benchmarks.floor $(ARGS)

bench-api: $(STAMP) ## measure the REST API against a minimal application, and exports against COPY
	@$(BIN)/python -m benchmarks.api $(ARGS)

bench-techniques: $(STAMP) ## measure what batches, uvloop, raw bytes, arrays and prepared statements save
	@$(BIN)/python -m benchmarks.techniques $(ARGS)

bench-http: $(STAMP) ## measure the HTTP client against others as concurrency grows
	@$(BIN)/python -m benchmarks.http_transport

lint: $(STAMP) ## check format, lint, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict $(PACKAGES)
	@$(BIN)/lint-imports

format: $(STAMP) ## format the code and repair what lint can repair
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(STAMP) ## resolve pyproject.toml into the hashed lock files again
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		pyproject.toml --output-file requirements/runtime.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		pyproject.toml --extra dev --output-file requirements/dev.lock
	@{ echo '# uv itself, which installs everything else: pip checks these hashes, uv those of the other locks. Made by `make lock`.'; \
		awk '/^[a-z]/ { ours = /^uv==/ } ours && !/^ *#/' requirements/dev.lock; } > requirements/uv.lock

lock-peers: $(STAMP) ## resolve what bench-pipeline compares with into its hashed lock files again
	@for peer in dlt pyairbyte singer; do \
		$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
			benchmarks/peers/$$peer.in --output-file benchmarks/peers/$$peer.lock; done

audit: $(STAMP) ## look up the locked packages in the vulnerability databases
	@$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements/runtime.lock
	@$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements/dev.lock

clean: ## remove .venv and caches (not .data)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
