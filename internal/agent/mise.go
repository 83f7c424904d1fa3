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
	programs []string // where mise may be

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
// the command runs without. A plain VM's commands run in the home directory,
// and there nothing is looked for.
func (t *toolchain) environment(ctx context.Context, cwd, home string, base *environ) []wire.KV {
	if cwd == home || cwd == "/" {
		return nil
	}
	program := ""
	for _, p := range t.programs {
		if executable(p) == nil {
			program = p
			break
		}
	}
	if program == "" {
		return nil
	}
	key, top := miseKey(cwd, home)
	if key == "" {
		return nil
	}
	t.mu.Lock()
	known, fresh := t.known, t.key == key
	t.mu.Unlock()
	if fresh {
		return known
	}
	// The guest is the user's own sandbox, and so is what was put into it.
	trust := wire.KV{Key: "MISE_TRUSTED_CONFIG_PATHS", Value: top}
	base.set(trust.Key, trust.Value)
	known, err := askMise(ctx, program, cwd, base.list())
	if err != nil {
		return []wire.KV{trust}
	}
	known = append(known, trust)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key, t.known = key, known
	return known
}

// miseKey names the state of mise's files from cwd upwards, below home and the
// root, and the topmost directory that has one; "" where there are none.
func miseKey(cwd, home string) (key, top string) {
	var b strings.Builder
	for dir := cwd; dir != home && dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		for _, name := range miseFiles {
			var st unix.Stat_t
			path := filepath.Join(dir, name)
			if unix.Stat(path, &st) == nil {
				fmt.Fprintf(&b, "%s:%d:%d.%d;", path, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
				top = dir
			}
		}
	}
	if b.Len() == 0 {
		return "", ""
	}
	return cwd + "|" + b.String(), top
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
