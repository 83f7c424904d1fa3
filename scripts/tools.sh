# shellcheck shell=bash
# The tools of the yard, each pinned, and how to get one. To be sourced after
# lib.sh, which sets cache and log.
# shellcheck disable=SC2154

# shellcheck disable=SC2034 # for those who source this
{
	golangci_lint=github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2
	govulncheck=golang.org/x/vuln/cmd/govulncheck@v1.9.0
	protoc_gen_go=google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	protoc_gen_connect=connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
}

# tool NAME MODULE@VERSION: prints the path of that program, built once into
# the cache from its module.
tool() {
	local dir=$cache/tools/$1-${2##*@}
	if [[ ! -x $dir/$1 ]]; then
		printf '+ go install %s\n' "$2" >>"$log"
		GOBIN=$dir GOFLAGS=-mod=mod go install "$2" >>"$log" 2>&1 </dev/null || return 1
	fi
	printf '%s\n' "$dir/$1"
}
