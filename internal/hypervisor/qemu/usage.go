package qemu

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/proc"
)

// Usage reads what QEMU costs from /proc. Where its memory map may not be read
// (another user's process, without CAP_SYS_PTRACE), Private is what is
// resident and not of a file.
func (m *machine) Usage() (hypervisor.Usage, error) {
	fail := func(err error) error {
		if errors.Is(err, proc.ErrGone) || errors.Is(err, os.ErrNotExist) {
			return errs.Wrap(hypervisor.ErrGone, errs.Unavailable, "machine_gone", "measure machine %s", m.ref.ID)
		}
		return errs.Wrap(err, errs.Internal, "machine_usage", "measure machine %s", m.ref.ID)
	}
	u := hypervisor.Usage{CodeBuffer: m.ref.CodeBuffer}
	var err error
	if u.CPU, err = proc.CPUTime(m.ref.Process); err != nil {
		return hypervisor.Usage{}, fail(err)
	}
	dir := "/proc/" + strconv.Itoa(m.ref.Process.PID)
	b, err := os.ReadFile(dir + "/smaps_rollup")
	if err == nil {
		u.RSS, u.Private, err = parseRollup(string(b))
	} else if errors.Is(err, os.ErrPermission) {
		if b, err = os.ReadFile(dir + "/statm"); err == nil {
			u.RSS, u.Private, err = parseStatm(string(b), int64(os.Getpagesize()))
		}
	}
	if err != nil {
		return hypervisor.Usage{}, fail(err)
	}
	if !proc.Alive(m.ref.Process) { // what was read may be another's
		return hypervisor.Usage{}, fail(proc.ErrGone)
	}
	return u, nil
}

// parseRollup adds up /proc/PID/smaps_rollup. Swapped pages are private too;
// clean ones of a file are not: they are the page cache's, whoever maps them.
func parseRollup(text string) (rss, private int64, err error) {
	seen := false
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		f := strings.Fields(value)
		if !ok || len(f) != 2 || f[1] != "kB" {
			continue
		}
		kib, err := strconv.ParseInt(f[0], 10, 53)
		if err != nil {
			return 0, 0, fmt.Errorf("memory map: %w", err)
		}
		switch key {
		case "Rss":
			rss, seen = kib<<10, true
		case "Private_Dirty", "Swap":
			private += kib << 10
		}
	}
	if !seen {
		return 0, 0, errors.New("memory map without a total")
	}
	return rss, private, nil
}

// parseStatm reads /proc/PID/statm: pages in all, resident, of files.
func parseStatm(text string, page int64) (rss, private int64, err error) {
	f := strings.Fields(text)
	if len(f) < 3 {
		return 0, 0, errors.New("memory state too short")
	}
	resident, err := strconv.ParseInt(f[1], 10, 50)
	if err != nil {
		return 0, 0, fmt.Errorf("memory state: %w", err)
	}
	shared, err := strconv.ParseInt(f[2], 10, 50)
	if err != nil {
		return 0, 0, fmt.Errorf("memory state: %w", err)
	}
	return resident * page, (resident - shared) * page, nil
}
