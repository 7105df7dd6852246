# make study      install, build a study, write its report          STUDY=config/studies/mnist.yaml  CORES=8
# make report     only the report with provenance of a built study   STUDY=...
# make crate      a finished study as RO-Crate, to publish           STUDY=...
# make reproduce  rebuild the study of a crate and compare           CRATE=mnist.crate.zip  INTO=reproduced  COMPARE=tables  DATA=/data
#                 FILES="language.text.folder=/texts"  RTOL=1e-3  ATOL=1e-6  MOST_GIB=4  TRUST_REMOTE_CODE=1
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
flags = --workflow-profile workflow/profiles/local --cores $(CORES) --configfile "$$STUDY"
name = $$($(python) -m saeflow.config "$$STUDY")
# Recipes read paths from the environment, as they were typed: what they hold is neither expanded nor run.
override STUDY := $(value STUDY)
override INTO := $(value INTO)
override CRATE := $(value CRATE)
override DATA := $(value DATA)
override FILES := $(value FILES)
export STUDY INTO CRATE DATA FILES

.PHONY: study report crate reproduce test env lock docs format

# The study is read here first: Snakemake would run the code of one that asks for its template engine.
study: env
	@name=$(name) && $(snakemake) $(flags) --quiet rules
	@$(MAKE) --no-print-directory report

report: env
	@name=$(name) && \
	{ test -f results/$$name/MANIFEST.sha256 || { echo "results/$$name is not built: make study STUDY='$$STUDY'" >&2; exit 1; }; } && \
	$(snakemake) $(flags) --quiet all --report results/$$name.report.zip && \
	echo && \
	echo "site:              results/$$name/site/index.html" && \
	echo "report:            results/$$name/report.html" && \
	echo "with provenance:   results/$$name.report.zip (open report.html in it)" && \
	echo "digests:           results/$$name/MANIFEST.sha256"

crate: env
	@name=$(name) && $(snakemake) crate $(flags) && echo "crate: results/$$name.crate.zip"

wishes = $(if $(COMPARE),--compare $(COMPARE)) $(if $(DATA),--data-dir "$$DATA") $(if $(FILES),--files "$$FILES") \
	$(if $(RTOL),--rtol $(RTOL)) $(if $(ATOL),--atol $(ATOL)) $(if $(MOST_GIB),--most-gib $(MOST_GIB)) \
	$(if $(filter 1,$(TRUST_REMOTE_CODE)),--trust-remote-code)

# What a foreign study finds goes into the folder alone: neither into your catalog nor to your trackers.
reproduce: override STUDY = $(INTO)/study.yaml
reproduce: env
	$(if $(CRATE),,$(error CRATE names no crate; make reproduce CRATE=mnist.crate.zip))
	@$(python) -m saeflow.publish.reproduction $(wishes) -- "$$CRATE" "$$INTO"
	@env -u SAEFLOW_CATALOG_URL -u SAEFLOW_TRACKERS $(snakemake) $(flags) --directory "$$INTO"
	@name=$(name) && cat "$$INTO/results/$$name/verification.txt"

test: env
	$(python) -m pytest -n $(CORES) --dist loadfile $(PYTEST)

env: $(VENV)/.locked

$(VENV)/.locked: $(wildcard envs/*.lock envs/torchvision_schemas.*) envs/install.sh
	sh envs/install.sh $(VENV)
	@touch $@

lock: env
	$(python) envs/lock.py

docs: env
	$(python) -m saeflow.config.document
	$(python) tests/workflow/rulegraph.py

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/snakefmt Snakefile workflow
