#!/usr/bin/env bash
# Prints the path of a `go` that is new enough for this tree, getting one where
# the host has none: the toolchain that go.mod names, from the Go module proxy,
# checked by Go's checksum database and against scripts/toolchain.sum.
#
# An older Go does the fetching; where there is none at all, Debian's package
# of one is unpacked for that (not installed) and thrown away afterwards.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BANGER_BUILD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/banger-build}
say() { printf '%s\n' "$*" >&2; }
fail() {
	say "toolchain: $*"
	exit 1
}

want=$(sed -n 's/^go //p' "$here/../go.mod")

# new_enough GO: whether that program is of version $want or later by itself.
new_enough() {
	local have
	have=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
	have=${have#go}
	[[ $(printf '%s\n%s\n' "$want" "${have%% *}" | sort -V | head -n 1) == "$want" ]]
}

if own=$(command -v go) && new_enough "$own"; then
	printf '%s\n' "$own"
	exit 0
fi
for own in /usr/local/go/bin/go "$cache/go$want/bin/go"; do
	if [[ -x $own ]] && new_enough "$own"; then
		printf '%s\n' "$own"
		exit 0
	fi
done

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) fail "no toolchain for $(uname -m): install Go $want or later" ;;
esac
version=v0.0.1-go$want.linux-$arch
pinned=$(awk -v v="$version" '$1 == "golang.org/toolchain" && $2 == v { print $3 }' "$here/toolchain.sum")
[[ -n $pinned ]] || fail "scripts/toolchain.sum has no sum for $version: install Go $want or later"

mkdir -p "$cache"
work=$(mktemp -d "$cache/toolchain.XXXXXX")
cleanup() {
	chmod -R u+w "$work" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT

# fetcher: some go, however old, that can download a module.
fetcher() {
	if command -v go; then return; fi
	command -v apt-get >/dev/null || fail "no Go here and no apt-get to get one: install Go $want or later"
	local name
	name=$(apt-cache depends golang-go 2>/dev/null | sed -n 's/^ *Depends: \(golang-[0-9.]*-go\)$/\1/p' | head -n 1)
	[[ -n $name ]] || fail "apt knows no Go package: run 'apt-get update', or install Go $want or later"
	say "fetching $name to fetch Go $want with"
	(cd "$work" && apt-get download -q "$name" >&2 && dpkg-deb -x "$name"_*.deb bootstrap) || fail "cannot get $name"
	ls "$work"/bootstrap/usr/lib/go-*/bin/go
}

# download GO: prints the module's JSON. The checksum database is asked unless
# it cannot be reached; the pinned sum decides in any case.
download() {
	local go=$1
	(
		cd "$work"
		export GOPATH=$work/path GOMODCACHE=$work/mod GOFLAGS=-mod=mod GOTOOLCHAIN=local GO111MODULE=on
		"$go" mod download -json "golang.org/toolchain@$version" ||
			GONOSUMDB=golang.org/toolchain GONOSUMCHECK=1 "$go" mod download -json "golang.org/toolchain@$version"
	)
}

field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}$/\1/p" "$work/module.json" | head -n 1; }

go=$(fetcher)
say "fetching Go $want from the module proxy"
download "$go" >"$work/module.json" || fail "cannot download golang.org/toolchain@$version: $(field Error)"
sum=$(field Sum)
dir=$(field Dir)
[[ $sum == "$pinned" ]] || fail "golang.org/toolchain@$version has the sum $sum, scripts/toolchain.sum says $pinned: not used"

# A module cannot carry modes or nested go.mod files: put both back.
chmod -R u+w "$dir"
chmod +x "$dir"/bin/* "$dir"/pkg/tool/*/*
find "$dir/src" -name _go.mod -execdir mv {} go.mod \;
rm -rf "${cache:?}/go$want"
mv "$dir" "$cache/go$want"
new_enough "$cache/go$want/bin/go" || fail "what was fetched does not run as Go $want"
printf '%s\n' "$cache/go$want/bin/go"
