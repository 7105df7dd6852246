#!/bin/sh
# What both recipes beside this file put on their base, as root on Debian or Ubuntu: the locked environment in
# /opt/saeflow/venv and those of the rules beside it. TORCH_BUILD is cuda or cpu; /opt/saeflow/envs is there.
set -eu
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends ca-certificates python3 python3-venv
rm -rf /var/lib/apt/lists/*
# Compiled, because nothing can write into an image later.
UV_COMPILE_BYTECODE=1 sh /opt/saeflow/envs/install.sh /opt/saeflow/venv /opt/saeflow/rules
# Where Snakemake looks for them.
ln -s /opt/saeflow/rules /conda-envs
rm -rf "$HOME/.cache"

# All that Snakemake asks of the conda in an image that has its environments already.
mkdir -p /opt/conda/bin
cat > /opt/conda/bin/activate <<'END'
export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"
END
cat > /opt/conda/bin/conda <<'END'
#!/bin/sh
case "$*" in
    "info --json") echo '{"conda_prefix": "/opt/conda", "platform": "linux-64"}' ;;
    --version) echo "conda 24.7.1" ;;
    *) echo "conda $*: the environments of this image are made when it is built, it has no conda" >&2; exit 1 ;;
esac
END
chmod +x /opt/conda/bin/conda
