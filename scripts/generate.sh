#!/usr/bin/env bash
# The API's code from its protobuf files, by pinned generators: `make generate`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/tools.sh
. scripts/tools.sh

go=$(scripts/toolchain.sh 2>>"$log") || give_up "no Go toolchain"
PATH=$(dirname "$go"):$PATH
export PATH

stage generate
command -v protoc >/dev/null || give_up "no protoc here" "apt-get install protobuf-compiler"
gen=$(tool protoc-gen-go "$protoc_gen_go") || give_up "protoc-gen-go cannot be had here"
connect=$(tool protoc-gen-connect-go "$protoc_gen_connect") || give_up "protoc-gen-connect-go cannot be had here"
quietly protoc -I internal/api --plugin=protoc-gen-go="$gen" --plugin=protoc-gen-connect-go="$connect" \
	--go_out=internal/api --go_opt=paths=source_relative \
	--connect-go_out=internal/api --connect-go_opt=paths=source_relative \
	internal/api/banger/v1/banger.proto || give_up "protoc failed"
done_with "internal/api/banger/v1"
