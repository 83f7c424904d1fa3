// Package buildinfo says what this build is: version, commit, toolchain. The
// values come from the linker (see the Makefile) and, where it gave none, from
// what the Go toolchain records. It decides nothing.
package buildinfo

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Set with -ldflags "-X".
var (
	version = ""
	commit  = ""
	date    = ""
	prefix  = "/usr/local"
)

// API is the number of the contract in internal/api that this build speaks.
// It grows when a change breaks clients; equal numbers work together whatever
// their versions.
const API = 1

// Info is what a build knows of itself.
type Info struct {
	Version string // "0.1.0", or "dev"
	Commit  string // abbreviated, "+changes" appended when built from a changed tree; "" where unknown
	Date    string // RFC 3339, of the commit; "" where unknown
	Go      string
	OS      string
	Arch    string
	API     uint32
}

// Get collects the build's information; it never fails.
func Get() Info {
	i := Info{Version: version, Commit: commit, Date: date, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, API: API}
	if bi, ok := debug.ReadBuildInfo(); ok && i.Commit == "" {
		changed := false
		for _, s := range bi.Settings {
			switch s.Key {
			case "vcs.revision":
				i.Commit = s.Value[:min(12, len(s.Value))]
			case "vcs.time":
				if i.Date == "" {
					i.Date = s.Value
				}
			case "vcs.modified":
				changed = s.Value == "true"
			}
		}
		if changed && i.Commit != "" {
			i.Commit += "+changes"
		}
	}
	if i.Version == "" {
		i.Version = "dev"
	}
	i.Version = strings.TrimPrefix(i.Version, "v")
	return i
}

// Prefix is where the build expects to be installed ("/usr/local").
func Prefix() string { return prefix }
