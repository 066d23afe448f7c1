# `make help` lists what can be made. Everything is installed into .venv and made below build/.

PROFILE ?= laptop
PYTHON ?= python3
LAB ?=
python := .venv/bin/python

# Half of pip's time would be compiling all that it installs; Python compiles what is used, once.
unexport PYTHONDONTWRITEBYTECODE

# A stamp per set of extras and per content of what decides what is installed: nothing is
# reinstalled while that is the same. The folder counts, for .venv points to it.
pins := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-$(shell printf '%s' "$(CURDIR)" | cksum | cut -d' ' -f1)
comma := ,
with_book := .venv/.book,train$(if $(filter desk%,$(PROFILE)),$(comma)desk)-$(pins)
with_cluster := .venv/.book,train,cluster-$(pins)
with_test := .venv/.book,train,serve,cluster,test-$(pins)
with_dev := .venv/.book,train,serve,dev-$(pins)

compile = $(python) -m uv pip compile -q --no-annotate --no-header --no-emit-package corea pyproject.toml

# vLLM is tested in an environment of its own.
python_vllm := .venv-vllm/bin/python
pins_vllm := $(pins)-$(shell cksum < constraints-vllm.txt | cut -d' ' -f1)
with_vllm := .venv-vllm/.vllm-$(pins_vllm)

.DEFAULT_GOAL := help
.PHONY: help book plan rehearse cluster publish claims parameters lab test test-vllm lint constraints clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "PROFILE=laptop (default) or another name in profiles/; PYTHON=python3, 3.11 or newer;"
	@echo "LAB=... options for JupyterLab, for instance LAB=--no-browser"

book: $(with_book) ## Execute what is missing or changed and build the book; print where it is
	@$(python) -m corea build $(PROFILE)

plan: $(with_book) ## Print what PROFILE takes, what is done and what is missing (DEVICE=a100: there)
	@$(python) -m corea plan $(PROFILE) $(if $(DEVICE),--device $(DEVICE))

rehearse: $(with_book) ## Execute every run of PROFILE on CPUs, with a small MODEL and few steps
	@$(python) -m corea rehearse $(PROFILE) $(if $(MODEL),--model $(MODEL))

cluster: $(with_cluster) ## Set up .venv for a Slurm cluster; profiles/slurm says how to go on

publish: $(with_book) ## Copy the small tables of PROFILE's full run into the package, to be committed
	@$(python) -m corea publish $(PROFILE)

claims: $(with_book) ## Derive the verdict on every claim of the papers from the committed tables
	@$(python) -m corea claims

parameters: $(with_book) ## Write the parameter files, for running a notebook by hand
	@$(python) -m corea parameters $(PROFILE)

# Notebooks run here, where build/ is, and not in their own folder.
lab: $(with_book) ## Open JupyterLab on the notebooks
	@$(python) -m jupyterlab "--MappingKernelManager.root_dir=$(CURDIR)" $(LAB) notebooks

test: $(with_test) ## Run the tests
	@$(python) -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-vllm: $(with_vllm) ## Test vLLM beside transformers, in .venv-vllm (3 GB, no GPU needed)
	@$(python_vllm) -m pytest -W default tests_vllm

lint: $(with_dev) ## Check style, types, spelling and that notebooks hold no output
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy
	@$(python) -m codespell_lib
	@$(python) -m nbstripout --verify --keep-id notebooks/*.ipynb

constraints: $(with_dev) ## Pin what pyproject.toml now needs, keeping pins that still fit
	@$(compile) --universal --python-version 3.11 $(foreach e,book train serve desk cluster test dev,--extra $(e)) \
		-o constraints.txt
	@$(compile) --python-version 3.13 --python-platform x86_64-manylinux_2_34 \
		$(foreach e,book train cluster gpu,--extra $(e)) -o constraints-gpu.txt
	@printf '%s\n' torch torchvision torchaudio torchcodec > .venv/.excluded
	@$(compile) --universal --python-version 3.11 --group vllm --excludes .venv/.excluded \
		-o constraints-vllm.txt

clean: ## Remove everything made except .venv and .venv-vllm
	rm -rf build .snakemake

.venv/bin/python .venv-vllm/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); exit 1; }

.venv/.%-$(pins): .venv/bin/python
	@echo "Installing corea[$*] and what it needs into .venv (once, a minute or two)"
	@$(python) -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[$*]'
	@find .venv -maxdepth 1 -name '.book*' ! -name '*-$(pins)' -delete
	@touch $@

# torch by itself, for what it needs depends on its build; the list has all the rest of a set that
# fits vLLM, without what reads pictures, films and sound.
$(with_vllm): $(python_vllm)
	@echo "Installing vLLM without a GPU and what it needs into .venv-vllm (once, some minutes)"
	@$(python_vllm) -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt torch
	@$(python_vllm) -m pip install -q --disable-pip-version-check --no-compile --no-deps \
		-r constraints-vllm.txt -e .
	@find .venv-vllm -maxdepth 1 -name '.vllm*' ! -name '*-$(pins_vllm)' -delete
	@touch $@
