#!/usr/bin/env bash
# Every test there is: `make test`, and whole repetitions with `make soak`.
# Installs what the tests need. As an ordinary user the end-to-end tests run
# through sudo, for they make network namespaces and users of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

packages=(qemu-system-x86 mmdebstrap e2fsprogs openssh-client git ca-certificates uidmap
	debian-archive-keyring iproute2 gcc libc6-dev shellcheck jq)

limit=20m
if [[ -n ${BANGER_SOAK:-} ]]; then limit=12h; fi

stage packages
need_packages "${packages[@]}"
done_with "what the tests need"

stage toolchain
go=$(scripts/toolchain.sh 2>>"$log") || give_up "no Go toolchain"
PATH=$(dirname "$go"):$PATH
export PATH
quietly go mod download || give_up "cannot download the modules"
done_with "$("$go" env GOVERSION)"

stage build
quietly make build || give_up "the build failed"
done_with "bin/banger, bin/bangerd, bin/banger-vsock-agent"

stage house
unformatted=$(gofmt -l cmd internal images kernels test 2>>"$log") || give_up "gofmt failed"
[[ -z $unformatted ]] || give_up "not formatted: $unformatted" "gofmt -w $unformatted"
quietly go vet ./... || give_up "go vet has words"
quietly go vet -tags e2e ./... || give_up "go vet -tags e2e has words"
mapfile -t shell < <(git ls-files '*.sh' .ci/run 2>/dev/null | grep . || ls scripts/*.sh .ci/run)
quietly shellcheck -x "${shell[@]}" || give_up "shellcheck has words"
done_with "gofmt, vet, shellcheck"

# summary FILE: go test's closing lines.
summary() { grep -aE '^(ok|FAIL|---|panic:|\?)' "$1" | grep -av 'no test files' || true; }

# gotest NAME ARGS...: runs them, shows what failed.
gotest() {
	local out=$cache/test-$1.log
	shift
	# shellcheck disable=SC2317 # called through quietly
	run_gotest() { go test -timeout "$limit" "$@" >"$out" 2>&1; }
	if ! quietly run_gotest "$@"; then
		clear_line
		grep -aE '^ *(--- FAIL|FAIL|panic:)|_test\.go:[0-9]+:' "$out" | head -n 60 >&2 || true
		give_up "tests failed; all of their output: $out"
	fi
	summary "$out" >>"$cache/summary"
}
: >"$cache/summary"

stage unit
gotest unit -race ./...
done_with "$(grep -c '^ok' "$cache/summary") packages, with the race detector"

# The packages with end-to-end tests, one after the other: machines are the
# tests' own, processors are not.
stage end-to-end
mapfile -t files < <(grep -rlE --include='*_test.go' '^//go:build .*\be2e\b' cmd internal test | sort)
mapfile -t e2e < <(printf './%s\n' "${files[@]}" | xargs dirname | sort -u)
# By name, for their neighbours without the tag have run already.
names=$(grep -hoE '^func Test[A-Za-z0-9_]+' "${files[@]}" | sed 's/^func //' | grep -vx TestMain | sort -u | paste -sd '|')
if ((${#e2e[@]} == 0)); then give_up "no end-to-end tests found"; fi
through=()
if ((EUID != 0)); then
	may_be_root "for the end-to-end tests"
	through=(-exec "sudo --preserve-env=PATH,HOME,GOCACHE,BANGER_SOAK env")
fi
export BANGER_TEST_BIN=$root/bin
CGO_ENABLED=0 gotest e2e -tags e2e -p 1 -count=1 -run "^($names)\$" "${through[@]}" "${e2e[@]}"
done_with "${#e2e[@]} packages, real microVMs included"

cat "$cache/summary"
printf 'All tests passed in %s.\n' "$(total_time)"
