#!/usr/bin/env bash
# What people feel, measured beside its floor in the same run: `make bench`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

go=$(scripts/toolchain.sh 2>>"$log") || give_up "no Go toolchain"
[[ -d test/bench ]] || give_up "there is no test/bench"
export BANGER_TEST_BIN=$root/bin
exec "$go" run ./test/bench "$@"
