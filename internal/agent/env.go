package agent

import (
	"context"
	"os"
	"strings"

	"github.com/banger-dev/banger/internal/guest/wire"
)

// defaultPath is what Debian gives root, and has every usual place in it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ is an environment under construction: the last value of a name wins.
type environ struct {
	names  []string
	values map[string]string
}

func (e *environ) set(name, value string) {
	if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
		return
	}
	if _, there := e.values[name]; !there {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environ) get(name string) string { return e.values[name] }

func (e *environ) list() []string {
	out := make([]string, len(e.names))
	for i, n := range e.names {
		out[i] = n + "=" + e.values[n]
	}
	return out
}

// environment is what a command gets: the user's own names, the guest's
// /etc/environment, the toolchain's, and then whatever the host asked for.
func (x *execs) environment(ctx context.Context, req *wire.ExecRequest, who *user, cwd string) *environ {
	e := &environ{values: make(map[string]string, 16)}
	e.set("PATH", defaultPath)
	e.set("HOME", orRoot(who.home))
	e.set("USER", who.name)
	e.set("LOGNAME", who.name)
	e.set("LANG", "C.UTF-8")
	if who.shell != "" {
		e.set("SHELL", who.shell)
	}
	if req.TTY {
		e.set("TERM", "xterm-256color")
	}
	readEnvironment(e, "/etc/environment")
	if req.Toolchain {
		for _, kv := range x.tools.environment(ctx, cwd, who.home, e) {
			e.set(kv.Key, kv.Value)
		}
	}
	for _, kv := range req.Env {
		e.set(kv.Key, kv.Value)
	}
	return e
}

func orRoot(home string) string {
	if home == "" || !isDir(home) {
		return "/"
	}
	return home
}

// readEnvironment reads a file of NAME=value lines as pam_env does: comments,
// an optional "export", one pair of quotes.
func readEnvironment(e *environ, path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		e.set(strings.TrimSpace(name), value)
	}
}
