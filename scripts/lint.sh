#!/usr/bin/env bash
# Format, vet, linters, shell scripts: `make lint`. golangci-lint is built from
# its module at the version pinned here; where that cannot be had, staticcheck
# stands in and this says so.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/tools.sh
. scripts/tools.sh

go=$(scripts/toolchain.sh 2>>"$log") || give_up "no Go toolchain"
PATH=$(dirname "$go"):$PATH
export PATH

stage format
unformatted=$(gofmt -l cmd internal images kernels test 2>>"$log") || give_up "gofmt failed"
[[ -z $unformatted ]] || give_up "not formatted: $unformatted" "gofmt -w $unformatted"
done_with "gofmt"

stage vet
quietly go vet ./... || give_up "go vet has words"
quietly go vet -tags e2e ./... || give_up "go vet -tags e2e has words"
done_with "go vet"

stage linters
if lint=$(tool golangci-lint "$golangci_lint"); then
	quietly "$lint" run ./... || give_up "golangci-lint has words"
	done_with "golangci-lint ${golangci_lint##*@}"
elif check=$(tool staticcheck "$staticcheck"); then
	quietly "$check" ./... || give_up "staticcheck has words"
	done_with "staticcheck; golangci-lint could not be had here"
else
	give_up "neither golangci-lint nor staticcheck can be had here"
fi

stage house
quietly go test ./internal/archtest || give_up "the house's rules are broken"
done_with "internal/archtest"

stage scripts
if command -v shellcheck >/dev/null; then
	mapfile -t shell < <(git ls-files '*.sh' .ci/run)
	quietly shellcheck -x "${shell[@]}" || give_up "shellcheck has words"
	done_with "shellcheck"
else
	give_up "no shellcheck here" "apt-get install shellcheck"
fi
