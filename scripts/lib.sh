# shellcheck shell=bash
# What the yard's scripts share: stages with their time, the log, root where it
# is needed. To be sourced.

# shellcheck disable=SC2034 # for those who source this
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${BANGER_BUILD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/banger-build}
# One log for each script, of its latest run.
log=$cache/$(basename "$0" .sh).log

mkdir -p "$cache"
: >"$log"

tick=ok cross=FAIL dots='...'
case ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} in
*[Uu][Tt][Ff]*8*) tick=✓ cross=✗ dots=… ;;
esac
live=no
if [[ -t 1 && ${TERM:-dumb} != dumb ]]; then live=yes; fi

stage_name='' stage_start=0 script_start=$(date +%s%N)

# stage NAME: what happens from here on belongs to it.
stage() {
	stage_name=$1
	stage_start=$(date +%s%N)
	printf '== %s\n' "$1" >>"$log"
	draw
}

# since NANOSECONDS: the time since then, as 0.3s, 41s, 3m12s.
since() {
	local ms=$((($(date +%s%N) - $1) / 1000000))
	if ((ms < 10000)); then
		printf '%d.%ds' $((ms / 1000)) $((ms % 1000 / 100))
	elif ((ms < 100000)); then
		printf '%ds' $((ms / 1000))
	else
		printf '%dm%02ds' $((ms / 60000)) $((ms % 60000 / 1000))
	fi
}

# said is what the running stage last said.
said() {
	tail -c 400 "$log" | tr '\r' '\n' | grep -av -e '^$' -e '^[=+] ' -e '^== ' | tail -n 1 | tr -cd '[:print:]' | sed 's/^ *//' | cut -c 1-56 || true
}

# draw shows the running stage with its time and what it last said.
draw() {
	[[ $live == yes ]] || return 0
	printf '\r\033[K %s %-12s %-56s %8s' "$dots" "$stage_name" "$(said)" "$(since "$stage_start")"
}

# watch draws until it is ended; where nothing can be drawn over, it adds a
# line now and then, so that a long stage is not taken for a dead one.
watch() {
	local pause=0.2
	[[ $live == yes ]] || pause=30
	while sleep "$pause" >/dev/null 2>&1; do # holds no pipe of ours open
		if [[ $live == yes ]]; then
			draw
		else
			printf '   %-12s %-62s %8s\n' "$stage_name" "$(said)" "$(since "$stage_start")"
		fi
	done
}

clear_line() {
	[[ $live == yes ]] || return 0
	printf '\r\033[K'
}

# done_with TEXT: the stage ended well.
done_with() {
	clear_line
	printf ' %s %-12s %-62s %8s\n' "$tick" "$stage_name" "$1" "$(since "$stage_start")"
	stage_name=''
}

# give_up TEXT [NEXT STEP]: the stage failed; says where and what next.
give_up() {
	clear_line
	printf ' %s %-12s %s\n' "$cross" "${stage_name:-$(basename "$0")}" "$1" >&2
	if [[ -s $log ]]; then
		awk '/^== / { n = 0; next } NF { line[n++] = $0 } END { for (i = n > 15 ? n - 15 : 0; i < n; i++) print "     " line[i] }' "$log" >&2
		printf '   whole log: %s\n' "$log" >&2
	fi
	if [[ -n ${2:-} ]]; then printf '   %s\n' "$2" >&2; fi
	exit 1
}

# quietly COMMAND...: its output goes to the log, its time to the screen. The
# command stays in the foreground, so that Ctrl-C is its own to answer.
quietly() {
	printf '+ %s\n' "$*" >>"$log"
	local watcher status=0
	watch &
	watcher=$!
	"$@" >>"$log" 2>&1 </dev/null || status=$?
	kill "$watcher" 2>/dev/null || true
	wait "$watcher" 2>/dev/null || true
	return "$status"
}

# as_root COMMAND...: directly, or through sudo, which may ask once.
as_root() {
	if ((EUID == 0)); then
		"$@"
	else
		sudo "$@"
	fi
}

# may_be_root WHY: asks for sudo's password while the terminal is quiet.
may_be_root() {
	((EUID == 0)) && return 0
	command -v sudo >/dev/null || give_up "$1 needs root, and there is no sudo" "run it as root: su -c 'make $(basename "$0" .sh)'"
	sudo -n true 2>/dev/null && return 0
	clear_line
	printf ' %s %-12s sudo is needed: %s\n' "$dots" "$stage_name" "$1"
	sudo -v || give_up "$1 needs sudo"
}

# missing PACKAGE...: those of Debian's packages that are not installed.
missing() {
	local p
	for p in "$@"; do
		[[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || printf '%s ' "$p"
	done
}

# need_packages PACKAGE...: installs what is missing.
need_packages() {
	local want
	want=$(missing "$@")
	[[ -n $want ]] || return 0
	command -v apt-get >/dev/null || give_up "missing: $want" "this script installs packages on Debian only: install them, then run it again"
	may_be_root "to install ${want% }"
	# shellcheck disable=SC2086 # a list of names
	set -- $want
	if ! quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; then
		quietly as_root apt-get update || give_up "apt-get update failed"
		quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" ||
			give_up "apt-get could not install ${want% }"
	fi
}

# total_time: since the script began.
total_time() { since "$script_start"; }
