# dtwb: `make demo` shows it, `make test` proves it; everything is set up in .venv first. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONUNBUFFERED = 1
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lab serve notebooks readme chromium peers recorded clean

help: ## this list
	@grep -E '^[a-zA-Z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: .venv/.ready ## everything that is needed, in .venv

# torch goes first and pinned: a later requirement could pull in gigabytes of CUDA libraries instead
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dtwb needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python has no venv module here: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Setting up .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' 2>.venv/install.log || { cat .venv/install.log; exit 1; }
	@$(BIN)/python -c 'from dtwb.scheduling.solve import warm_up; warm_up(); from dtwb.twin.fast import warm_up; warm_up(); from dtwb.vision.boxes import warm_up; warm_up()'
	@touch $@

demo: setup ## the closed loop on the tile plant, with and without
	@$(BIN)/dtwb run

test: setup chromium lint ## all checks and tests
	@$(BIN)/python -m pytest -n 3 $(ARGS)

lint: setup
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check nbs tests && $(BIN)/pyright dtwb

# the browser tests skip, saying so, where there is no Chromium
chromium:
	@command -v chromium >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
	  && { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1; } \
	  || echo "No Chromium: the browser tests will be skipped (Debian: apt-get install chromium)"

peers: ## what the benchmarks compare with, each in a venv of its own below .venv-peers
	@grep -v '^#' nbs/benchmarks/peers.txt | while read -r pins; do at=.venv-peers/$${pins%%==*}; \
	  test -x $$at/bin/python || $(PYTHON) -m venv $$at && $$at/bin/pip install -q --disable-pip-version-check $$pins || exit 1; done

recorded: setup ## the recorded sweeps anew, on a quiet machine: make recorded SWEEPS="loop_worth solver_limits"
	@$(BIN)/python nbs/experiments/run_recorded.py $(SWEEPS)

# .jupyter has what keeps JupyterLab from asking other hosts; PANEL_INLINE does it for Panel and HoloViews
lab: setup ## JupyterLab on the notebooks
	@PANEL_INLINE=true JUPYTER_CONFIG_PATH=$(CURDIR)/.jupyter $(BIN)/jupyter lab $(ARGS)

serve: setup ## the dashboards
	@$(BIN)/dtwb serve

notebooks: setup ## run all notebooks and keep their fresh outputs
	@$(BIN)/nbdev-export && $(BIN)/nbdev-test --save --n-workers 2 && $(BIN)/nbdev-clean && $(MAKE) -s readme

readme: setup ## README.md from nbs/index.ipynb
	@$(BIN)/python tests/readme.py > README.md.tmp && mv README.md.tmp README.md

clean: ## what was generated, but not .venv, runs or models
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis _proc _docs README.md.tmp
	@find nbs dtwb tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
