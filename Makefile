# make study   install, build a study, write its report          STUDY=config/studies/mnist.yaml  CORES=8
# make test    install, run every test                           PYTEST="-k sae -x"
# make lock    pin the newest versions that envs/requirements.in allows
# make docs    regenerate the config schema and the page of keys, and the rulegraph in the README
SHELL := /bin/sh
VENV ?= .venv
CORES ?= $(shell nproc 2>/dev/null || echo 2)
STUDY ?= config/config.yaml
PYTEST ?=
python := $(VENV)/bin/python
snakemake := $(VENV)/bin/snakemake --workflow-profile workflow/profiles/local --cores $(CORES) --configfile $(STUDY)

.PHONY: study test env lock docs format

study: env
	$(snakemake)
	@name=$$($(python) -c 'import sys, saeflow.config as c; print(c.load(sys.argv[1]).study)' $(STUDY)) && \
	$(snakemake) --quiet all --report results/$$name.report.zip && \
	echo && \
	echo "report:            results/$$name/report.html" && \
	echo "with provenance:   results/$$name.report.zip (open report.html in it)" && \
	echo "digests:           results/$$name/MANIFEST.sha256"

test: env
	$(python) -m pytest -n $(CORES) --dist loadfile $(PYTEST)

env: $(VENV)/.locked

$(VENV)/.locked: $(wildcard envs/*.lock) envs/install.sh
	sh envs/install.sh $(VENV)
	@touch $@

lock: env
	$(python) envs/lock.py

docs: env
	$(python) -m saeflow.config_document
	$(python) tests/workflow/rulegraph.py

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/snakefmt Snakefile workflow
