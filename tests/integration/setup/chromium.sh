#!/bin/sh
# A browser without a window, for tests/integration/test_browser.py. Debian, as root; does nothing where it is.
set -eu
if command -v chromium >/dev/null; then exit 0; fi
[ "$(id -u)" = 0 ] || { echo "chromium.sh: needs root to install chromium" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "chromium.sh: no apt-get; install Chromium by hand" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
