#!/bin/sh
# Builds the wheel, installs it into an empty environment, and runs the examples from there, with
# neither Rust nor this folder's package in reach.
set -eu
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

.venv/bin/maturin build --release --locked --quiet --out "$place/dist"
"${PYTHON:-python3}" -m venv "$place/venv"
PATH=/usr/bin:/bin "$place/venv/bin/pip" install --quiet --disable-pip-version-check "$place"/dist/*.whl
cp -r examples "$place/examples"
cd "$place"
PATH=/usr/bin:/bin ./venv/bin/giantvm version
PATH=/usr/bin:/bin ./venv/bin/python examples/demo.py
