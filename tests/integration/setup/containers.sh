#!/bin/sh
# Builders and a runtime of containers, for tests/integration/test_containers.py: buildah, mmdebstrap and Apptainer.
# Debian 12 on x86-64, as root; does nothing where they are.
set -eu
for program in buildah mmdebstrap apptainer; do
    command -v "$program" >/dev/null || missing=1
done
[ -n "${missing:-}" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "containers.sh: needs root to install buildah, mmdebstrap and apptainer" >&2; exit 1; }
grep -q '^VERSION_CODENAME=bookworm' /etc/os-release || { echo "containers.sh: is written for Debian 12" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
install() { apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >/dev/null; }
apt-get update -qq
install buildah mmdebstrap
if command -v apptainer >/dev/null; then exit 0; fi

# Debian has Apptainer in unstable alone, built for a newer libc: both are unpacked into one folder, which nothing else
# uses, by an apt with a state of its own.
install patchelf squashfs-tools uidmap libseccomp2 libsqlite3-0
prefix=/opt/apptainer
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial cache/archives/partial
: >status
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'ORIGIN: Debian' 'CODENAME: bookworm' | head -n 1)
printf 'Types: deb\nURIs: %s\nSuites: trixie sid\nComponents: main\nSigned-By: %s\n' \
    "$mirror" /usr/share/keyrings/debian-archive-keyring.gpg >newer.sources
newer() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/newer.sources" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" -o APT::Sandbox::User=root "$@"
}
newer update
newer download apptainer libc6/trixie
dpkg -x apptainer_*.deb apptainer
dpkg -x libc6_*.deb libc
rm -rf "$prefix"
mkdir -p "$prefix/libc"
mv apptainer/usr/bin apptainer/usr/lib apptainer/etc apptainer/var "$prefix"/
# Its starter looks for both one folder too low.
ln -s ../var "$prefix/lib/var"
ln -s ../etc "$prefix/lib/etc"
libraries=/usr/lib/x86_64-linux-gnu
for name in ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libnss_files.so.2 libnss_dns.so.2 libresolv.so.2 libpthread.so.0 libdl.so.2 librt.so.1; do
    cp -a "libc$libraries/$name" "$prefix/libc/"
done
cp -L "$libraries/libseccomp.so.2" "$libraries/libsqlite3.so.0" "$prefix/libc/"
for program in "$prefix/bin/apptainer" "$prefix/lib/x86_64-linux-gnu/apptainer/bin/starter"; do
    # RPATH: what Apptainer puts into LD_LIBRARY_PATH would win over a RUNPATH.
    patchelf --set-interpreter "$prefix/libc/ld-linux-x86-64.so.2" "$program"
    patchelf --force-rpath --set-rpath "$prefix/libc" "$program"
done
# A root without CAP_SYS_RESOURCE, as in many virtual machines, cannot give all capabilities away.
sed -i 's/^root default capabilities = .*/root default capabilities = no/' "$prefix/etc/apptainer/apptainer.conf"
ln -sfn "$prefix/bin/apptainer" /usr/local/bin/apptainer
apptainer --version >/dev/null
