package system

import (
	"context"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/guest/wire"
)

// tick is the length of a tick of /proc/stat (USER_HZ), in milliseconds.
const tick = 10

// Stats reads the guest's load. What cannot be read is zero.
func (s *System) Stats(context.Context) (wire.Stats, error) {
	st := wire.Stats{UptimeMS: uint64(uptime().Milliseconds())}
	parseMeminfo(line("/proc/meminfo"), &st)
	parseCPU(line("/proc/stat"), &st)
	parseNetDev(line("/proc/net/dev"), &st)
	first, _, _ := strings.Cut(line("/proc/loadavg"), " ")
	st.Load1, _ = strconv.ParseFloat(first, 64)
	st.Processes = countProcesses("/proc")
	if s.disk != nil {
		st.SystemDiskTotal, st.SystemDiskUsed = usage(func(f *unix.Statfs_t) error { return unix.Fstatfs(int(s.disk.Fd()), f) })
	}
	if s.handoff.Disks["work"] != "" {
		st.WorkDiskTotal, st.WorkDiskUsed = usage(func(f *unix.Statfs_t) error { return unix.Statfs(homeDir, f) })
	}
	return st, nil
}

func usage(stat func(*unix.Statfs_t) error) (total, used uint64) {
	var f unix.Statfs_t
	if err := stat(&f); err != nil {
		return 0, 0
	}
	size := uint64(f.Bsize)
	return f.Blocks * size, (f.Blocks - f.Bfree) * size
}

func parseMeminfo(text string, st *wire.Stats) {
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(f[1], 10, 54)
		switch f[0] {
		case "MemTotal:":
			st.MemTotal = n * 1024
		case "MemAvailable:":
			st.MemAvailable = n * 1024
		}
	}
}

// parseCPU reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal.
func parseCPU(text string, st *wire.Stats) {
	first, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(first)
	if len(f) < 9 || f[0] != "cpu" {
		return
	}
	var v [8]uint64
	for i := range v {
		v[i], _ = strconv.ParseUint(f[i+1], 10, 60)
	}
	st.CPUUserMS = (v[0] + v[1]) * tick
	st.CPUSystemMS = (v[2] + v[5] + v[6]) * tick
	st.IdleMS = (v[3] + v[4]) * tick
}

// parseNetDev sums the bytes of the interfaces that lead out of the guest.
func parseNetDev(text string, st *wire.Stats) {
	for l := range strings.Lines(text) {
		name, rest, ok := strings.Cut(l, ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || len(f) < 9 || !strings.HasPrefix(name, "eth") && !strings.HasPrefix(name, "en") {
			continue
		}
		rx, _ := strconv.ParseUint(f[0], 10, 64)
		tx, _ := strconv.ParseUint(f[8], 10, 64)
		st.NetRX += rx
		st.NetTX += tx
	}
}

func countProcesses(proc string) uint32 {
	dir, err := os.Open(proc)
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var n uint32
	for _, name := range names {
		if name[0] >= '1' && name[0] <= '9' {
			n++
		}
	}
	return n
}
