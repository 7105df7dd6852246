# make study      install, build a study, write its report          STUDY=config/studies/mnist.yaml  CORES=8
# make report     only the report with provenance of a built study   STUDY=...
# make crate      a finished study as RO-Crate, to publish           STUDY=...
# make reproduce  rebuild the study of a crate and compare           CRATE=mnist.crate.zip  INTO=reproduced  COMPARE=tables  DATA=/data
# make test       install, run every test                            PYTEST="-k sae -x"
# make lock       pin the newest versions that envs/requirements.in allows
# make docs       regenerate the config schema and the page of keys, and the rulegraph in the README
SHELL := /bin/sh
VENV ?= .venv
CORES ?= $(shell nproc 2>/dev/null || echo 2)
STUDY ?= config/config.yaml
PYTEST ?=
INTO ?= reproduced
python := $(VENV)/bin/python
# Targets of Snakemake come before the flags: --configfile takes whatever follows it.
snakemake := $(VENV)/bin/snakemake
flags = --workflow-profile workflow/profiles/local --cores $(CORES) --configfile $(STUDY)
name = $$($(python) -c 'import sys, saeflow.config as c; print(c.load(sys.argv[1]).study)' $(STUDY))

.PHONY: study report crate reproduce test env lock docs format

# The study is read here first: Snakemake would run the code of one that asks for its template engine.
study: env
	@name=$(name) && $(snakemake) $(flags) --quiet rules
	@$(MAKE) --no-print-directory report

report: env
	@name=$(name) && \
	{ test -f results/$$name/MANIFEST.sha256 || { echo "results/$$name is not built: make study STUDY=$(STUDY)" >&2; exit 1; }; } && \
	$(snakemake) $(flags) --quiet all --report results/$$name.report.zip && \
	echo && \
	echo "site:              results/$$name/site/index.html" && \
	echo "report:            results/$$name/report.html" && \
	echo "with provenance:   results/$$name.report.zip (open report.html in it)" && \
	echo "digests:           results/$$name/MANIFEST.sha256"

crate: env
	@name=$(name) && $(snakemake) crate $(flags) && echo "crate: results/$$name.crate.zip"

reproduce: override STUDY = $(INTO)/study.yaml
reproduce: env
	$(python) -m saeflow.publish.reproduction $(if $(COMPARE),--compare $(COMPARE)) $(if $(DATA),--data-dir $(DATA)) \
	$(or $(CRATE),$(error CRATE names no crate; make reproduce CRATE=mnist.crate.zip)) $(INTO)
	$(snakemake) $(flags) --directory $(INTO)
	@cat $(INTO)/results/$(name)/verification.txt

test: env
	$(python) -m pytest -n $(CORES) --dist loadfile $(PYTEST)

env: $(VENV)/.locked

$(VENV)/.locked: $(wildcard envs/*.lock envs/torchvision_schemas.*) envs/install.sh
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
