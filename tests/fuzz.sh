#!/bin/sh
# Fuzzes the decoder and the stream receiver for SECONDS each (default 20), from the seeds in the
# repository. Installs nothing; without cargo-fuzz it says so and ends well.
set -eu

seconds=${1:-20}
case $seconds in
'' | *[!0-9]* | 0) echo "usage: $0 [SECONDS]" >&2; exit 2 ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
crate=$root/crates/dsm-core

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: skipped, because cargo-fuzz is not installed (cargo install cargo-fuzz --version 0.13.2 --locked)"
    exit 0
fi

# cargo-fuzz needs unstable compiler flags; this lets the stable compiler take them.
export RUSTC_BOOTSTRAP=1
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$crate"
status=0
for target in decode stream; do
    mkdir "$work/$target"
    # New inputs go to the first corpus, so that a run leaves the repository as it was.
    if cargo fuzz run "$target" "$work/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=20000 -print_final_stats=1 >"$work/log" 2>&1; then
        executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")
        echo "fuzz: $target: ${executions:?no statistics in the log} executions in $seconds s, nothing found"
    else
        tail -n 40 "$work/log" >&2
        echo "fuzz: $target: FAILED; repeat with the input that the log above names:" \
            "cd crates/dsm-core && RUSTC_BOOTSTRAP=1 cargo fuzz run $target INPUT" >&2
        status=1
    fi
done
exit $status
