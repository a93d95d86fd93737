# `make demo` and `make test` need nothing but this folder, make and a Python from 3.11 to 3.13.

PYTHON ?= python3
# What `make check`, and so .ci/run, checks, in this order; of those joined by + two at a time.
CHECKS := install lint+floors+types+docs+wheel test
# Libraries whose attacks ours are tested against, or measured beside (ART). Installed without dependencies: what they
# ask for, GitPython and requests apart (the test extra has them), is here already, or is not needed, or is long outdated.
ORACLES := foolbox==3.3.4 eagerpy==0.30.0 torchattacks==3.3.0 adversarial-robustness-toolbox==1.20.1 six==1.17.0

# A file of tests to each core, in the order of their names: the longest, the notebooks, come in the middle.
SPREAD := -n auto --dist loadfile --no-loadscope-reorder

# Of make faults: how many kills a command, and the seed of what chance decides.
KILLS ?= 50
SEED ?= 2102

# CIFAR-10 as train/<class>/ and test/<class>/ folders of images.
IMAGES ?= $(if $(CHANNELSCOPE_DATA),$(CHANNELSCOPE_DATA),data)/cifar10-jpeg

# Paths are relative, so that the folder's own path may have spaces in it.
VENV ?= .venv
OLDEST := .venv-oldest
RUN := $(VENV)/bin/python -m
# --no-compile: most of the 6 GB is never imported, and what is gets compiled then.
PIP_INSTALL := $(RUN) pip install --quiet --no-input --no-compile --disable-pip-version-check

# Where it is set, as in many containers, each of a test's processes would compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
ifndef TOGETHER
.NOTPARALLEL:
endif
.PHONY: help demo test test-quick test-oldest install lint format types floors docs wheel audit notebooks check coverage device faults fuzz \
	figures zoo results-small clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Run the demonstration: it trains, attacks and compares small networks
	$(VENV)/bin/channelscope demo

test: $(VENV)/.test ## Run the tests, the doctests and the notebooks
	$(RUN) pytest -q $(SPREAD)

test-quick: $(VENV)/.test ## Run the quick tests: those that train and attack for long are left out
	$(RUN) pytest -q $(SPREAD) -m "not slow"

test-oldest: $(OLDEST)/.test ## Run the tests with the oldest versions that setup.cfg allows, in .venv-oldest
	$(OLDEST)/bin/python -m pytest -q $(SPREAD)

install: $(VENV)/.dev ## Install channelscope and everything its development needs into .venv

lint: $(VENV)/.dev ## Check style and formatting (ruff)
	$(RUN) ruff check .
	$(RUN) ruff format --check .

format: $(VENV)/.dev ## Mend what ruff can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

types: $(VENV)/.dev ## Check the types (mypy, strict)
	$(RUN) mypy

floors: $(VENV)/.dev ## Check that modules import only from lower floors (import-linter)
	$(VENV)/bin/lint-imports

# The variable keeps a notice of the theme's authors on MkDocs 2 out of the output; setup.cfg stays below 2.
docs: $(VENV)/.dev ## Build the documentation site into site/, without a warning (MkDocs)
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --quiet --strict

wheel: $(VENV)/.dev ## Build the wheel, install it in a clean environment and use it there
	$(VENV)/bin/python .ci/wheel.py

audit: $(VENV)/.audit ## Ask PyPI for known vulnerabilities of all installed packages (pip-audit)
	$(RUN) pip list --format=freeze --exclude-editable >$(VENV)/audited.txt
	$(RUN) pip_audit --strict --no-deps --disable-pip --progress-spinner off -r $(VENV)/audited.txt

notebooks: $(VENV)/.test ## Execute the notebooks
	$(RUN) pytest -q tests/test_notebooks.py

check: ## Run every check that a change must pass
	@for checks in $(CHECKS); do \
		echo "== $$checks"; start=$$(date +%s); \
		$(MAKE) --no-print-directory -j 2 TOGETHER=yes $$(echo $$checks | tr + ' ') || exit 1; \
		echo "== $$checks: passed in $$(( $$(date +%s) - start )) s"; \
	done

coverage: $(VENV)/.test ## Run the tests and list the lines that none of them reaches
	$(RUN) pytest -q --cov

device: $(VENV)/.test ## Run the package on a stand-in for a GPU, by the rules of CUDA and MPS; needs a C++ compiler
	$(RUN) pytest -q -n 0 tests/device

faults: $(VENV)/.test ## Kill, starve and damage runs at random, KILLS times a command: half an hour or more
	$(RUN) pytest -q -n 0 tests/faults --kills $(KILLS) --fault-seed $(SEED) --fault-record docs/reliability/faults.json

fuzz: $(VENV)/.test ## Feed all that is read with over 20,000 files that are wrong: a quarter of an hour
	@$(PIP_INSTALL) -e ".[fuzz]" || echo "atheris cannot be installed here: inputs by hypothesis and mutation alone."
	$(VENV)/bin/python tests/fuzz --record $(if $(SEED),--seed $(SEED))

figures: $(VENV)/.demo ## Make the galleries in figures/ again
	$(RUN) figures.make

zoo: $(VENV)/.test ## Train the networks that ship with the package on IMAGES: hours
	$(RUN) benchmarks.results train --data "$(IMAGES)"

results-small: $(VENV)/.test ## Measure them on IMAGES, write the tables of docs/RESULTS.md, draw: two hours
	$(RUN) benchmarks.results measure --data "$(IMAGES)"
	$(RUN) figures.make

clean: ## Remove .venv, .venv-oldest, caches and build output; data/ and runs/ stay
	rm -rf $(VENV) $(OLDEST) build dist site *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of dependencies; a change of what they are made from installs them again.
STAMPED := setup.cfg pyproject.toml Makefile

# The import compiles what the demonstration imports, which its processes would each do anew.
$(VENV)/.demo: $(STAMPED)
	@$(call ensure_venv)
	$(PIP_INSTALL) -e .
	@$(VENV)/bin/python -c "import channelscope; channelscope.compare, channelscope.train"
	@touch $@

$(VENV)/.test: $(STAMPED)
	@$(call ensure_venv)
	$(PIP_INSTALL) -e ".[test]"
	$(PIP_INSTALL) --no-deps $(ORACLES)
	@touch $@

$(VENV)/.dev: $(STAMPED)
	@$(call ensure_venv)
	$(PIP_INSTALL) -e ".[dev]"
	$(PIP_INSTALL) --no-deps $(ORACLES)
	@touch $(VENV)/.test $@

# --strict: a package that the service does not know, or a service that cannot be reached, fails the audit.
$(VENV)/.audit: $(VENV)/.test
	$(PIP_INSTALL) -e ".[audit]"
	@touch $@

# The oldest of everything works together on the oldest Python. It is kept, as it is another 6 GB to fetch.
$(OLDEST)/.test: $(STAMPED) .ci/lower_bounds.py
	python3.11 -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python .ci/lower_bounds.py >$(OLDEST)/constraints.txt
	$(subst $(VENV),$(OLDEST),$(PIP_INSTALL)) --constraint $(OLDEST)/constraints.txt -e ".[test]"
	$(subst $(VENV),$(OLDEST),$(PIP_INSTALL)) --no-deps $(ORACLES)
	@touch $@

# The first Python that suits and can make a virtual environment makes it. Each candidate must really run:
# a version manager's stand-in for a Python that is not there is found on the path, and fails.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
define ensure_venv
	if ! $(RUN) pip --version >/dev/null 2>&1; then \
		maker=; bare=; \
		for python in "$(PYTHON)" python3.13 python3.12 python3.11; do \
			"$$python" -c '$(SUITS)' >/dev/null 2>&1 || continue; \
			if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then maker=$$python; break; fi; \
			bare=$${bare:-$$python}; \
		done; \
		if [ -z "$$maker" ] && [ -n "$$bare" ]; then \
			echo "$$bare cannot make a virtual environment because its ensurepip module is missing:" \
				"install it (on Debian and Ubuntu: apt install python3-venv) and run make again." >&2; exit 1; \
		elif [ -z "$$maker" ]; then \
			echo "channelscope needs Python 3.11, 3.12 or 3.13, and none of $(PYTHON), python3.13, python3.12 and" \
				"python3.11 is one that runs: install one, or name it with PYTHON=/path/to/python3." >&2; exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$maker" --version); the first installation takes some minutes and about 6 GB."; \
		"$$maker" -m venv --clear $(VENV) || exit 1; \
	fi
endef
