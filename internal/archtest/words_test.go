package archtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Marks of work that was left, put together here so that this file has none.
var leftover = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)

// No host name of a package registry, as this machine's own clients have them,
// and no mark of unfinished work stands in the tree.
func TestWords(t *testing.T) {
	hosts := registryHosts(t)
	walk(t, func(name string) {
		raw, err := os.ReadFile(filepath.Join(top, name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(raw, 0) >= 0 || ignored(name) {
			return
		}
		for _, h := range hosts {
			if bytes.Contains(raw, []byte(h)) {
				t.Errorf("%s names a registry's host", name)
			}
		}
		switch filepath.Ext(name) {
		case ".go", ".sh", ".ts":
			if m := leftover.Find(raw); m != nil {
				t.Errorf("%s has a %s left", name, m)
			}
		}
	})
}

// ignored are files that git would not take.
func ignored(name string) bool {
	return strings.HasPrefix(name, "bin/") || strings.HasSuffix(name, ".test") || strings.HasSuffix(name, ".out")
}

var hostPattern = regexp.MustCompile(`https?://([^/,|\s"']+\.[^/,|\s"']+)`)

func registryHosts(t *testing.T) []string {
	t.Helper()
	var text []byte
	if out, err := exec.Command("go", "env", "GOPROXY").Output(); err == nil {
		text = append(text, out...)
	}
	files, err := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	if err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob("/etc/apt/sources.list.d/*.list")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(append(files, lists...), "/etc/apt/sources.list") {
		if raw, err := os.ReadFile(f); err == nil {
			text = append(append(text, raw...), '\n')
		}
	}
	var hosts []string
	for _, m := range hostPattern.FindAllSubmatch(text, -1) {
		_, h, found := strings.Cut(string(m[1]), "@")
		if !found {
			h = string(m[1])
		}
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}
