package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

// miseLimit is how long mise may take to say what it would set.
const miseLimit = 30 * time.Second

// toolchain asks the guest's mise for the environment of a workspace. In a
// guest without mise or without its files it costs a few stats.
type toolchain struct {
	mu    sync.Mutex
	key   string // what the answer was for
	known []wire.KV
}

var (
	misePrograms = []string{"/usr/local/bin/mise", "/usr/bin/mise"}
	miseFiles    = []string{
		"mise.toml", ".mise.toml", "mise.local.toml", ".mise.local.toml", ".tool-versions",
		"mise/config.toml", ".mise/config.toml", ".config/mise.toml", ".config/mise/config.toml",
	}
)

// environment gives mise's variables for a command in cwd. Where mise fails,
// the command runs without.
func (t *toolchain) environment(ctx context.Context, cwd string, base *environ) []wire.KV {
	root := workspace()
	if root == "" || cwd != root && !strings.HasPrefix(cwd, root+"/") {
		return nil
	}
	program := ""
	for _, p := range misePrograms {
		if executable(p) == nil {
			program = p
			break
		}
	}
	if program == "" {
		return nil
	}
	key := miseKey(cwd, root)
	if key == "" {
		return nil
	}
	t.mu.Lock()
	known, fresh := t.known, t.key == key
	t.mu.Unlock()
	if fresh {
		return known
	}
	known, err := askMise(ctx, program, cwd, base.list())
	if err != nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key, t.known = key, known
	return known
}

// miseKey names the state of mise's files from cwd up to the workspace's
// root; "" where there are none.
func miseKey(cwd, root string) string {
	var key strings.Builder
	for dir := cwd; ; dir = filepath.Dir(dir) {
		for _, name := range miseFiles {
			var st unix.Stat_t
			path := filepath.Join(dir, name)
			if unix.Stat(path, &st) == nil {
				fmt.Fprintf(&key, "%s:%d:%d.%d;", path, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
			}
		}
		if dir == root || dir == "/" {
			break
		}
	}
	if key.Len() == 0 {
		return ""
	}
	return cwd + "|" + key.String()
}

func askMise(ctx context.Context, program, cwd string, env []string) ([]wire.KV, error) {
	ctx, cancel := context.WithTimeout(ctx, miseLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "env", "--json")
	cmd.Dir, cmd.Env, cmd.Stderr = cwd, env, nil
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	return parseMise(out)
}

// parseMise reads mise's answer: one object of strings.
func parseMise(b []byte) ([]wire.KV, error) {
	vars := make(map[string]string)
	if err := json.Unmarshal(b, &vars); err != nil {
		return nil, err
	}
	out := make([]wire.KV, 0, len(vars))
	for k, v := range vars {
		out = append(out, wire.KV{Key: k, Value: v})
	}
	return out, nil
}
