# The whole workflow's environment as an OCI image:  docker build -f containers/saeflow.Dockerfile -t saeflow .
# The base is pinned by digest (CUDA 13.0.1, Ubuntu 24.04, x86-64); BASE replaces it where another registry is used.
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04@sha256:c3fde347d52d578c84fd644bc177bc7ec333feaf11550d990da4084d7612e4c7
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY envs /opt/saeflow/envs
COPY scripts /opt/saeflow/scripts
RUN TORCH_BUILD=cuda sh /opt/saeflow/envs/install.sh /opt/saeflow/venv && rm -rf /root/.cache
# Snakemake calls plain `python` inside the container.
ENV PATH=/opt/saeflow/venv/bin:$PATH PYTHONHASHSEED=0 CUBLAS_WORKSPACE_CONFIG=:4096:8
