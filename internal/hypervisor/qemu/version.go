package qemu

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// version is QEMU's version.
type version struct{ major, minor, micro int }

// What came when, where the driver does things differently.
var (
	// oldest is Debian 12's: the first with -netdev stream.
	oldest = version{7, 2, 0}
	// privateReadOnly: memory-backend-file maps a file privately without
	// opening it for writing (readonly=on,rom=off).
	privateReadOnly = version{8, 2, 0}
	// migrateFile: "file:" takes a descriptor set; "fd:" of a file is
	// deprecated.
	migrateFile = version{9, 1, 0}
)

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.micro) }

func (v version) less(w version) bool {
	if v.major != w.major {
		return v.major < w.major
	}
	if v.minor != w.minor {
		return v.minor < w.minor
	}
	return v.micro < w.micro
}

func (v version) has(since version) bool { return !v.less(since) }

var versionLine = regexp.MustCompile(`QEMU emulator version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

// parseVersion reads what `qemu-system-x86_64 --version` prints.
func parseVersion(out string) (version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return version{}, errors.New("no version in what it printed")
	}
	var v version
	for i, to := range []*int{&v.major, &v.minor, &v.micro} {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return version{}, err
		}
		*to = n
	}
	return v, nil
}

// parseCPUModel gives the first model name of a /proc/cpuinfo, or "unknown".
func parseCPUModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		key, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(key) == "model name" {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return "unknown"
}
