package agent

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a zombie is left to whoever waits for it.
const patience = time.Second

// ReapOrphans reaps processes that nobody waits for, until ctx ends. It is for
// an agent that is PID 1, to whom every orphan of the guest falls. Children
// that have an owner in this process (commands, os/exec) are reaped by that
// owner within milliseconds; only a zombie that is still there after a second
// is taken for an orphan.
func ReapOrphans(ctx context.Context) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	defer signal.Stop(c)
	for {
		pid := firstZombie()
		if pid == 0 {
			select {
			case <-c:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(patience):
		case <-ctx.Done():
			return
		}
		if firstZombie() == pid {
			var ws syscall.WaitStatus
			_, _ = syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
		}
	}
}

// childInfo is the part of siginfo_t that waitid fills in, as it lies on
// 64-bit Linux.
type childInfo struct {
	signo, errno, code, _ int32
	pid                   int32
	_                     [108]byte
}

// firstZombie is a child that has ended and was not reaped, or 0.
func firstZombie() int {
	var info childInfo
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0
		}
		return int(info.pid)
	}
}
