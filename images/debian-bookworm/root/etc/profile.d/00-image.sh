# shellcheck shell=sh
# The tools that mise installed come first, in every shell.
case ":$PATH:" in
*:/root/.local/share/mise/shims:*) ;;
*) PATH="$HOME/.local/share/mise/shims:$HOME/.local/bin:$PATH" ;;
esac
export PATH
export LANG="${LANG:-C.UTF-8}"

# Where a project asks for mise, an interactive shell has its environment too.
if [ -n "${BASH_VERSION:-}" ] && [ -n "${PS1:-}" ] && command -v mise >/dev/null 2>&1; then
  banger_dir=$PWD
  while :; do
    if [ -e "$banger_dir/mise.toml" ] || [ -e "$banger_dir/.mise.toml" ] || [ -e "$banger_dir/.tool-versions" ]; then
      eval "$(mise activate bash)"
      break
    fi
    case $banger_dir in / | "") break ;; esac
    banger_dir=$(dirname "$banger_dir")
  done
  unset banger_dir
fi
