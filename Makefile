# Two commands matter: `make demo` and `make test`. Both set up .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch comes first and by version: elsewhere the same line takes the registry's build.
TORCH := torch==2.13.0
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo test test-survival test-fast lint format benchmarks clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/installed ## a real small sweep on built-in scenes with MLflow; the best model scored on held-out scenes, its masks drawn
	$(BIN)/python sweeps/demo.py --resume
	$(BIN)/cutslots evaluate models:/cutslots-scenes@champion --data scenes --figure $${CUTSLOTS_HOME:-cutslots-home}/demo.png
	$(BIN)/cutslots best --dataset scenes --metric miou --limit 10
	@echo "masks beside images: $${CUTSLOTS_HOME:-cutslots-home}/demo.png"
	@echo "all of it in MLflow: $(BIN)/cutslots ui"

test: $(VENV)/installed lint ## lint, types and all tests but those of `make test-survival`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not survival" -n 2 --dist loadgroup

test-survival: $(VENV)/installed ## what sweeps survive: killed workers and nodes, failing trials, absent servers; minutes
	$(BIN)/python -m pytest -q -m survival

test-fast: $(VENV)/installed ## the tests that take less than ten seconds
	$(BIN)/python -m pytest -q -m "not slow"

lint: $(VENV)/installed ## ruff, pyright and the words to avoid (tests/check_language.py)
	$(BIN)/python tests/check_language.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/installed ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(VENV)/installed ## every benchmark, results in results/benchmarks/; RAW=FILE prepares real CLEVR
	@mkdir -p results/benchmarks
	for name in model batches tracking; do $(BIN)/cutslots bench $$name --json results/benchmarks/$$name.json || exit 1; done
	$(BIN)/cutslots bench orchestration --sweep sweeps/demo.py --json results/benchmarks/orchestration.json
	$(BIN)/cutslots bench solvers --json results/benchmarks/solvers.json --figure results/benchmarks/solvers.png
	$(BIN)/cutslots bench prepare $(if $(RAW),clevr $(RAW),scenes) --json results/benchmarks/prepare.json

clean: ## remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
