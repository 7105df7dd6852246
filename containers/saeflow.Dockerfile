# The environment of every job as an OCI image:  docker build -f containers/saeflow.Dockerfile -t saeflow .
# CUDA 13.0.1 on Ubuntu 24.04, x86-64 and ARM: torch brings its own CUDA libraries, the base what the driver asks for.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143
FROM ${BASE}
ARG TORCH_BUILD=cuda
COPY envs /opt/saeflow/envs
COPY containers/install.sh /opt/saeflow/install.sh
RUN TORCH_BUILD=${TORCH_BUILD} sh /opt/saeflow/install.sh
# Snakemake calls plain `python` inside the container, and `conda` where a rule's own environment is asked for.
ENV PATH=/opt/saeflow/venv/bin:/opt/conda/bin:$PATH PYTHONHASHSEED=0 CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUTF8=1
