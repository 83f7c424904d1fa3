#!/usr/bin/env bash
# Known vulnerabilities in what the binaries link: `make vuln`. Needs Go's
# vulnerability database; where that cannot be reached it says so and fails
# with status 3, which is not "none found".
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/tools.sh
. scripts/tools.sh

go=$(scripts/toolchain.sh 2>>"$log") || give_up "no Go toolchain"
PATH=$(dirname "$go"):$PATH
export PATH

stage govulncheck
check=$(tool govulncheck "$govulncheck") || give_up "govulncheck cannot be had here"
out=$cache/vuln.out
# shellcheck disable=SC2317 # called through quietly
scan() { "$check" ./... >"$out" 2>&1; }
if quietly scan; then
	done_with "nothing known in what is called"
	exit 0
fi
if grep -aqE 'fetching vulnerabilities|no such host|HTTP GET|unexpected status|connection refused|timeout' "$out"; then
	clear_line
	grep -aE 'govulncheck:|HTTP GET|fetching' "$out" | head -n 3 >&2
	printf ' %s %-12s %s\n' "$cross" govulncheck "the vulnerability database cannot be reached from here: nothing was checked" >&2
	exit 3
fi
cat "$out" >&2
give_up "vulnerabilities known"
