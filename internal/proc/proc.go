// Package proc starts processes that outlive their parent and finds them again
// without ever mistaking another process for them. It knows nothing of what
// they run.
//
// Everything goes by Identity (pid, start time, boot) and pidfd: a signal is
// sent only through a pidfd whose process was verified to be the one named, so
// a pid that was reused is never signalled. The package does not restart,
// supervise or limit anything.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ErrGone says that the process named by an Identity no longer runs: it ended,
// its pid belongs to another process now, or the host was booted since.
var ErrGone = errors.New("process is gone")

// Identity names one process for all time: a pid alone is reused, a pid with
// its start time on one boot is not.
type Identity struct {
	PID int `json:"pid"`
	// Start is the process's start time in clock ticks since boot
	// (/proc/PID/stat field 22).
	Start uint64 `json:"start"`
	// Boot is the kernel's boot id.
	Boot string `json:"boot"`
}

// Zero says that no process is named.
func (id Identity) Zero() bool { return id.PID == 0 }

// String is "PID" for messages.
func (id Identity) String() string { return strconv.Itoa(id.PID) }

// Of gives the identity of the process that has pid now; ErrGone when none
// has, or only a zombie.
func Of(pid int) (Identity, error) {
	st, err := readStat(pid)
	if err != nil {
		return Identity{}, err
	}
	if st.dead() {
		return Identity{}, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	boot, err := BootID()
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, Start: st.start, Boot: boot}, nil
}

// Self is this process's identity.
func Self() (Identity, error) { return Of(os.Getpid()) }

// Alive says whether the very process named still runs. A zombie does not.
func Alive(id Identity) bool { return verify(id) == nil }

// verify gives nil when id's process runs, ErrGone when it does not, and
// another error when that cannot be found out.
func verify(id Identity) error {
	if id.PID <= 0 {
		return fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	boot, err := BootID()
	if err != nil {
		return err
	}
	if id.Boot != boot {
		return fmt.Errorf("process %d of an earlier boot: %w", id.PID, ErrGone)
	}
	st, err := readStat(id.PID)
	if err != nil {
		return err
	}
	if st.dead() || st.start != id.Start {
		return fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	return nil
}

// BootID is the kernel's id of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// stat is what is needed of /proc/PID/stat.
type stat struct {
	state        byte
	utime, stime uint64 // clock ticks
	start        uint64 // clock ticks since boot
}

func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		// ESRCH: it ended between open and read.
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNoProcess) {
			return stat{}, fmt.Errorf("process %d: %w", pid, ErrGone)
		}
		return stat{}, fmt.Errorf("read state of process %d: %w", pid, err)
	}
	st, err := parseStat(b)
	if err != nil {
		return stat{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return st, nil
}

// parseStat reads a line of /proc/PID/stat. The process chooses field 2, which
// may hold spaces and parentheses, so fields are counted from the last one.
func parseStat(b []byte) (stat, error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return stat{}, errors.New("state line without a name")
	}
	f := bytes.Fields(b[end+1:])
	const first = 3 // f[0] is field 3
	if len(f) <= 22-first || len(f[0]) != 1 {
		return stat{}, errors.New("state line too short")
	}
	num := func(field int) (uint64, error) {
		return strconv.ParseUint(string(f[field-first]), 10, 64)
	}
	st := stat{state: f[0][0]}
	for _, x := range []struct {
		field int
		to    *uint64
	}{{14, &st.utime}, {15, &st.stime}, {22, &st.start}} {
		v, err := num(x.field)
		if err != nil {
			return stat{}, fmt.Errorf("state line field %d: %w", x.field, err)
		}
		*x.to = v
	}
	return st, nil
}
