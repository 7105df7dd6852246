#!/bin/sh
# Make or update the virtual environment in the folder $1 from the hashed locks. Needs python3 (3.11 or newer).
# With a folder $2, as in an image: one environment for each file of conda specs there, too.
set -eu
venv=$1
here=$(dirname "$0")

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "saeflow needs Python 3.11 or newer; found $(python3 --version)" >&2
    exit 1
}
if ! python3 -c 'import ensurepip' 2>/dev/null; then
    # Debian's bare python3 cannot make a virtual environment that has pip in it.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv
    else
        echo "python3 lacks the venv module: apt-get install python3-venv, then run this again" >&2
        exit 1
    fi
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
python="$venv/bin/python"
"$python" -m uv --version >/dev/null 2>&1 || "$python" -m pip install --quiet --require-hashes -r "$here/uv.lock"

# uv does not read pip's settings: a machine set up for pip (a mirror, a folder of wheels) serves uv as well.
# `pip config get` knows the user's file alone; the list has the machine's as well.
setting() { "$python" -m pip config list 2>/dev/null | sed -n "s/^$1='\(.*\)'$/\1/p"; }
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(setting global.find-links)}}"
index="${PIP_INDEX_URL:-$(setting global.index-url)}"
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
# Where Python may not keep what it compiles, every job would compile torch anew: 3 s.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1

# Wheels, as the locks say; the packages that have none are built by hashed wheels too, which are there by then.
install() { VIRTUAL_ENV="$venv" "$python" -m uv pip install --require-hashes --no-build-isolation "$@"; }
install --quiet -r "$here/build.lock"
# torch: the CPU build where no GPU driver is and the machine offers that build; else the CUDA build, which runs on CPUs
# too. TORCH_BUILD=cpu or =cuda decides otherwise, as where an image is built for machines with a GPU.
build=${TORCH_BUILD:-cuda}
if [ -z "${TORCH_BUILD:-}" ] && ! command -v nvidia-smi >/dev/null && install --quiet --dry-run -r "$here/requirements.lock" -r "$here/torch-cpu.lock" 2>/dev/null; then
    build=cpu
fi
echo "saeflow: installing into $venv with the $build build of torch"
install --quiet -r "$here/requirements.lock" -r "$here/torch-$build.lock"
packages=$("$python" -c 'import site; print(site.getsitepackages()[0])')
cp "$here"/torchvision_schemas.* "$packages"
# `import saeflow` for notebooks and the command `saeflow`, where the library lies beside; scripts of the workflow find it
# by themselves.
if library=$(cd "$here/../scripts" 2>/dev/null && pwd); then
    printf '%s\n' "$library" >"$packages/saeflow.pth"
    printf '#!/bin/sh\nexec "%s" -m saeflow "$@"\n' "$(cd "$venv/bin" && pwd)/python" >"$venv/bin/saeflow"
    chmod +x "$venv/bin/saeflow"
fi
[ -z "${2:-}" ] || "$python" "$here/rule_environments.py" "$2"
