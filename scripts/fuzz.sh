#!/usr/bin/env bash
# Every fuzz target, each for FUZZTIME: `make fuzz`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

go=$(scripts/toolchain.sh 2>>"$log") || give_up "no Go toolchain"
PATH=$(dirname "$go"):$PATH
export PATH
FUZZTIME=${FUZZTIME:-10s}

while IFS=: read -r file target; do
	dir=./$(dirname "$file")
	stage "${target#Fuzz}"
	quietly go test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$dir" || give_up "$target in $dir found something"
	done_with "$dir"
done < <(grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' cmd internal | sed -E 's/:[0-9]+:func /:/' | sort)
