package npm

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/banger-dev/banger/internal/errs"
)

// EnvRegistry names a registry for banger alone.
const EnvRegistry = "BANGER_NPM_REGISTRY"

// askTimeout bounds how long npm itself may take to say what it uses.
const askTimeout = 10 * time.Second

// Finder looks for the registry that the user's npm would use.
type Finder struct {
	Getenv func(string) string
	Files  []string                                  // npmrc files, the first one counts most
	Ask    func(ctx context.Context) (string, error) // asks npm; nil where there is none
}

// HostFinder looks where npm on this machine does.
func HostFinder(getenv func(string) string) Finder {
	f := Finder{Getenv: getenv, Files: []string{"/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc"}}
	if home := getenv("HOME"); home != "" {
		f.Files = append([]string{filepath.Join(home, ".npmrc")}, f.Files...)
	}
	if p, err := exec.LookPath("npm"); err == nil {
		f.Ask = func(ctx context.Context) (string, error) { return askNPM(ctx, p) }
	}
	return f
}

// Find gives the base URL for packages of a scope ("@scope" or ""). Code:
// npm_registry_unknown.
func (f Finder) Find(ctx context.Context, scope string) (string, error) {
	for _, name := range []string{EnvRegistry, "npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v := strings.TrimSpace(f.Getenv(name)); v != "" {
			return v, nil
		}
	}
	for _, file := range f.Files {
		b, err := os.ReadFile(file)
		if err != nil || len(b) > 1<<20 {
			continue
		}
		if v := parseNPMRC(b, scope, f.Getenv); v != "" {
			return v, nil
		}
	}
	if f.Ask != nil {
		if v, err := f.Ask(ctx); err == nil && v != "" {
			return v, nil
		}
	}
	return "", errs.New(errs.Unavailable, "npm_registry_unknown", "no npm registry is configured on this host").
		WithHint("echo registry=URL >>~/.npmrc")
}

// parseNPMRC gives the registry of a scope, else the general one, else "".
func parseNPMRC(b []byte, scope string, getenv func(string) string) string {
	general, scoped := "", ""
	for line := range strings.SplitSeq(string(b), "\n") {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		key = strings.TrimSpace(key)
		if !ok || strings.HasPrefix(key, ";") || strings.HasPrefix(key, "#") {
			continue
		}
		value = strings.Trim(strings.TrimSpace(value), `"'`)
		value = os.Expand(value, func(name string) string { return getenv(name) })
		switch {
		case key == "registry":
			general = value
		case scope != "" && key == scope+":registry":
			scoped = value
		}
	}
	if scoped != "" {
		return scoped
	}
	return general
}

// askNPM lets npm tell, away from any project's own settings.
func askNPM(ctx context.Context, bin string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "config", "get", "registry")
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return "", err
	}
	v := strings.TrimSpace(out.String())
	u, err := url.Parse(v)
	if err != nil {
		return "", err
	}
	if u.Host == "" {
		return "", fmt.Errorf("npm names no registry: %q", v)
	}
	return v, nil
}

// redact keeps credentials of a URL out of messages.
func redact(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(not a URL)"
	}
	return u.Redacted()
}
