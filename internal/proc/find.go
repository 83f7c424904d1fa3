package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Marker is an argument by which processes of a VM are found again when no
// record of them is left. It stands in argv, which every user can read, so it
// holds nothing but names.
type Marker struct {
	VM  string // the VM's id
	Dir string // the VM's own directory, absolute; tells daemons apart
}

const markerPrefix = "banger-vm:"

// String is the argument, "banger-vm:ID:DIR".
func (m Marker) String() string { return markerPrefix + m.VM + ":" + m.Dir }

// ParseMarker reads an argument that String made, by itself or as the value of
// an option ("guest=banger-vm:…"); ok is false for any other.
func ParseMarker(arg string) (m Marker, ok bool) {
	if key, value, found := strings.Cut(arg, "="); found && !strings.Contains(key, ":") {
		arg = value
	}
	rest, ok := strings.CutPrefix(arg, markerPrefix)
	if !ok {
		return Marker{}, false
	}
	m.VM, m.Dir, ok = strings.Cut(rest, ":")
	if !ok || m.VM == "" || !filepath.IsAbs(m.Dir) {
		return Marker{}, false
	}
	return m, true
}

// Found is a process that carries a marker.
type Found struct {
	Marker
	Identity Identity
	UID      uint32 // its owner; anyone may imitate a marker in a process of their own
	Args     []string
}

// Find lists the running processes that carry the marker of a VM whose
// directory lies beneath root ("" for any). It reads /proc once; processes
// that come or go meanwhile may be missed.
func Find(ctx context.Context, root string) ([]Found, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Found
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f, ok := inspect(pid, root); ok {
			found = append(found, f)
		}
	}
	return found, nil
}

func inspect(pid int, root string) (Found, bool) {
	id, err := Of(pid) // before argv: if the pid changes hands, the identity is stale and harmless
	if err != nil {
		return Found{}, false
	}
	dir := "/proc/" + strconv.Itoa(pid)
	b, err := os.ReadFile(dir + "/cmdline")
	if err != nil || !bytes.Contains(b, []byte(markerPrefix)) {
		return Found{}, false
	}
	args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	for _, a := range args {
		m, ok := ParseMarker(a)
		if !ok || (root != "" && !beneath(m.Dir, root)) {
			continue
		}
		f := Found{Marker: m, Identity: id, Args: args}
		if fi, err := os.Stat(dir); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				f.UID = st.Uid
			}
		}
		return f, true
	}
	return Found{}, false
}

func beneath(path, root string) bool {
	rel, err := filepath.Rel(root, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// userHZ is the unit of times in /proc on every Linux architecture banger has.
const userHZ = 100

// CPUTime is the processor time, user and system, that the process has used.
func CPUTime(id Identity) (time.Duration, error) {
	st, err := readStat(id.PID)
	if err != nil {
		return 0, err
	}
	if st.start != id.Start {
		return 0, fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	return time.Duration(st.utime+st.stime) * time.Second / userHZ, nil
}
