#!/usr/bin/env bash
# From a bare Debian machine to a command in a microVM: `make quickstart`.
# May be run again at any time; what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

PREFIX=${PREFIX:-/usr/local}
kernel=generic-6.12
image=debian-bookworm
packages=(qemu-system-x86 mmdebstrap e2fsprogs openssh-client git ca-certificates uidmap debian-archive-keyring)

trap 'clear_line; printf "interrupted; make quickstart goes on where it was\n" >&2; exit 130' INT

stage host
[[ $(uname -s) == Linux ]] || give_up "this is $(uname -s): banger runs on Linux"
[[ $(uname -m) == x86_64 ]] || give_up "this is $(uname -m): the default kernel and image are for x86_64"
name=$(. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME:-Linux}") || name=Linux
memory=$(awk '/^MemTotal:/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)
if grep -Eqw 'svm|vmx' /proc/cpuinfo && [[ -r /dev/kvm && -w /dev/kvm ]]; then
	how="KVM"
else
	how="no KVM: software emulation"
fi
free=$(df -Pk "$HOME" | awk 'NR == 2 { print int($4 / 1048576) }')
((free >= 4)) || give_up "only ${free} GiB free in $HOME, 4 are needed" "free some space, or set HOME to a place that has it"
done_with "$name, $(nproc) cores, $memory, $how"

stage packages
lacking=$(missing "${packages[@]}")
need_packages "${packages[@]}"
if [[ -n $lacking ]]; then
	done_with "${lacking% } (installed)"
else
	done_with "all there"
fi

stage build
go=$(scripts/toolchain.sh 2>>"$log") || give_up "no Go toolchain"
PATH=$(dirname "$go"):$PATH quietly make build PREFIX="$PREFIX" || give_up "the build failed"
done_with "banger, bangerd, banger-vsock-agent ($("$go" env GOVERSION))"

stage install
if [[ -w $PREFIX || (! -e $PREFIX && -w $(dirname "$PREFIX")) ]] && [[ ! -e $PREFIX/bin || -w $PREFIX/bin ]]; then
	quietly make install PREFIX="$PREFIX" || give_up "cannot install to $PREFIX"
else
	may_be_root "to install to $PREFIX"
	quietly as_root make install PREFIX="$PREFIX" || give_up "cannot install to $PREFIX"
fi
banger=$PREFIX/bin/banger
# VMs outlive the daemon; a daemon of an older build does not serve the new one.
quietly "$banger" daemon stop || true
done_with "$PREFIX"

# json KEY: the first value of that key in what banger printed.
json() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1; }
mega() { awk -v b="${1:-0}" 'BEGIN { if (b >= 1e9) printf "%.1f GB", b / 1e9; else printf "%.0f MB", b / 1e6 }'; }

stage kernel
quietly "$banger" kernel pull "$kernel" || give_up "no kernel" "$banger doctor"
about=$("$banger" kernel show "$kernel" --json 2>>"$log") || about=''
done_with "$kernel ($(json release <<<"$about"), $(mega "$(json size <<<"$about")"))"

stage image
quietly "$banger" image pull "$image" || give_up "no image" "$banger doctor"
about=$("$banger" image show "$image" --json 2>>"$log") || about=''
count=$(grep -o '"version"' <<<"$about" | wc -l)
done_with "$image: $count packages, $(mega "$(json used <<<"$about")")"

stage "first boot"
out=$cache/first-boot.out
# shellcheck disable=SC2317 # called through quietly
first_boot() { "$banger" vm run --rm -- uname -a >"$out"; }
quietly first_boot || give_up "the first VM did not run" "$banger doctor"
done_with "a machine made, entered and thrown away"
cat "$out"
printf 'Ready after %s. Try:\n' "$(total_time)"
case :$PATH: in
*:"$PREFIX/bin":*) run=banger ;;
*) run=$banger ;;
esac
printf '  %-22s %s\n' "$run vm run" "a shell in a machine of your own" \
	"$run vm run ." "this repository in one" \
	"$run doctor" "what would make it faster"
