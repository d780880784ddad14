# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
# Variables: VENV, PYTHON, TORCH (a requirement with pip options, installed before all else),
# JOBS (test processes), ARGS (more arguments for pytest).

VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
ARGS ?=
# The first Python that runs and is new enough; pyenv leaves names behind that do not run.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  if $$p -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; \
  then echo $$p; break; fi; done)

PY := $(VENV)/bin/python
STAMP := $(VENV)/.foveate-installed
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help install demo test test-full test-vllm lint claims bite matrix docs lab-train bench bench-encode bench-tower bench-inside bench-gpu bench-vllm wheel clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# Torch comes first: what follows then finds it installed, and no other build of it is pulled.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Foveate needs Python 3.11 or newer; set PYTHON" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(TORCH)
	$(PY) -m pip install -e ".[dev]"
	@touch $@

install: $(STAMP) ## make the environment .venv with everything for use and development

demo: $(STAMP) ## answer questions about rendered pictures, with all visual tokens and with a plan
	$(PY) -m foveate.cli demo --out demo

test: $(STAMP) ## run the tests
	$(ONE) $(PY) -m pytest -n $(JOBS) -m "not full" $(ARGS)

test-full: $(STAMP) ## run the full product of methods and families; the log is kept
	$(ONE) $(PY) -m bench.full $(ARGS)

# vLLM pins its own torch and transformers: VLLM_PYTHON is the Python of an environment with vLLM and
# with this package (`pip install --no-deps -e .` and array-api-compat); docs/vllm.md has the steps.
test-vllm: $(STAMP) ## run the tests of the plug-in for vLLM; set VLLM_PYTHON
	@test -n "$(VLLM_PYTHON)" || { echo "set VLLM_PYTHON to a Python that has vLLM; see docs/vllm.md" >&2; exit 2; }
	$(ONE) VLLM_PYTHON=$(VLLM_PYTHON) $(PY) -m pytest tests/serving/vllm $(ARGS)

lint: $(STAMP) ## ruff, mypy and the import contracts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

claims: $(STAMP) ## run every "must hold" line and write bench/claims.md
	$(ONE) $(PY) -m bench.claims

bite: $(STAMP) ## plant faults and see that a test catches each
	$(ONE) $(PY) tests/bite/run.py

# A page is replaced only when its command succeeded.
matrix: $(STAMP) ## write docs/matrix.md: what each family can do
	$(ONE) $(PY) -m foveate.cli list --families --markdown > docs/.matrix.tmp
	@mv docs/.matrix.tmp docs/matrix.md

docs: matrix ## write the generated pages of docs/
	$(ONE) $(PY) docs/generate.py

lab-train: $(STAMP) ## train the bundled model from scratch into runs/lab-nano
	$(PY) -m foveate.lab.train --out runs/lab-nano
	$(PY) -m foveate.lab.card --run runs/lab-nano --model runs/lab-nano/model

bench: $(STAMP) ## measure P5, P6 and P7 into bench/results/
	$(ONE) $(PY) -m bench.oracle
	$(ONE) $(PY) -m bench.selection
	$(ONE) $(PY) -m bench.memory
	$(ONE) $(PY) -m bench.lab

bench-encode: $(STAMP) ## measure every token method by length and keep ratio; goes on where it ended
	$(ONE) $(PY) -m bench.encode $(ARGS)

bench-tower: $(STAMP) ## measure whole calls with methods inside the vision encoder
	$(ONE) $(PY) -m bench.tower $(ARGS)

bench-inside: $(STAMP) ## measure prefill, decode and continuous batching of the language model
	$(ONE) $(PY) -m bench.prefill $(ARGS)
	$(ONE) $(PY) -m bench.decode
	$(ONE) $(PY) -m bench.continuous
	$(ONE) $(PY) -m bench.inside_table

bench-gpu: $(STAMP) ## measure language models of 7B on a CUDA device
	$(PY) -m bench.inside_gpu $(ARGS)

bench-vllm: $(STAMP) ## measure vLLM's server under load with and without a plan; set VLLM_PYTHON
	$(PY) -m bench.vllm_load --python "$(VLLM_PYTHON)" $(ARGS)

wheel: $(STAMP) ## build the wheel into dist/
	$(PY) -m build --wheel

clean: ## remove build products and caches; the environment stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
