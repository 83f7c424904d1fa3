package daemon

import (
	"bufio"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// memory gives the host's RAM and what of it could be had now, in bytes; a
// control group's limit counts where it is lower.
func memory() (total, available int64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		kb, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			total = kb << 10
		case "MemAvailable:":
			available = kb << 10
		}
	}
	if limit := groupLimit(); limit > 0 && limit < total {
		total, available = limit, min(available, limit)
	}
	return total, available
}

// groupLimit is the memory limit of this process's control group, or 0.
func groupLimit() int64 {
	for _, p := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
			return n
		}
	}
	return 0
}

// cores is how many CPUs this process may use.
func cores() int { return runtime.NumCPU() }

// notify tells a service manager about the daemon's state, where there is one.
func (d *Daemon) notify(state string) {
	path := d.opt.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		d.log.Warn("tell the service manager", "err", err)
		return
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		d.log.Warn("tell the service manager", "err", err)
	}
}
