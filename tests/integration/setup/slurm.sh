#!/bin/sh
# A Slurm cluster's programs, for tests/integration/test_slurm.py. Debian or Ubuntu, as root; does nothing where they are.
set -eu
for program in slurmctld slurmd munged sbatch srun; do
    command -v "$program" >/dev/null || missing=1
done
[ -n "${missing:-}" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "slurm.sh: needs root to install slurmctld, slurmd, slurm-client and munge" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "slurm.sh: no apt-get; install Slurm and munge by hand" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
