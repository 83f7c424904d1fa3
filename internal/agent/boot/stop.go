package boot

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long processes have between SIGTERM and SIGKILL.
const stopGrace = 3 * time.Second

// stopMachine ends every process but the agent and itself, writes everything
// out and stops the machine. It is PID 1's way of stopping, where the image
// has no init to do it, and does not return.
func stopMachine(reboot bool, spare int) {
	endProcesses(spare)
	unmountAll()
	Halt(reboot)
}

// Halt writes the disks out and stops the machine at once. Of the two ways,
// both end the virtual machine: the host decides whether it comes back. It
// does not return.
func Halt(reboot bool) {
	unix.Sync()
	HaltUnsynced(reboot)
}

// HaltUnsynced is Halt for a caller who has written out what could be written.
func HaltUnsynced(reboot bool) {
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	_ = unix.Reboot(how)
	// A machine without a way to power off is still there: a reset ends it.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// endProcesses sends SIGTERM, waits for the processes to go, and kills what is
// left.
func endProcesses(spare int) {
	if signalAll(unix.SIGTERM, spare) == 0 {
		return
	}
	limit := time.NewTimer(stopGrace)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for signalAll(0, spare) > 0 {
		select {
		case <-limit.C:
			signalAll(unix.SIGKILL, spare)
			return
		case <-tick.C:
		}
	}
}

// signalAll signals every process of user space but this one and spare, and
// counts them. Signal 0 only counts.
func signalAll(sig unix.Signal, spare int) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == spare || !inUserSpace(pid) {
			continue
		}
		if unix.Kill(pid, sig) == nil {
			n++
		}
	}
	return n
}

// inUserSpace is false for kernel threads and for processes that have ended:
// neither has memory of its own.
func inUserSpace(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	return err == nil && !strings.HasPrefix(string(b), "0 ")
}

// unmountAll unmounts what lies on disks, the last mounted first, and makes
// the root read-only.
func unmountAll() {
	unix.Sync()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return
	}
	points := mountPoints(bufio.NewScanner(f))
	f.Close()
	for i := len(points) - 1; i >= 0; i-- {
		_ = unix.Unmount(points[i], unix.MNT_DETACH)
	}
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// mountPoints gives the mount points of disks' filesystems in mountinfo but
// for the root, in the order of mounting.
func mountPoints(s *bufio.Scanner) []string {
	var out []string
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		kind, _, _ := strings.Cut(after, " ")
		if !ok || len(fields) < 5 || fields[4] == "/" {
			continue
		}
		switch kind {
		case "ext4", "ext3", "ext2", "xfs", "btrfs", "vfat", "fuse", "overlay":
			out = append(out, unescape(fields[4]))
		}
	}
	return out
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and "\".
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
