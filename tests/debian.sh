#!/bin/sh
# Installs the Debian packages that are named, if any: tests/debian.sh PACKAGE...
set -eu
[ $# -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "missing Debian packages: run 'sudo apt-get install $*', then make again" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "$@"
