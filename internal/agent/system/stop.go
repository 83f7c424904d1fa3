package system

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

const (
	// headStart is what the answer gets to leave the guest in. Should it be
	// too little, the host sees the machine end in its place.
	headStart   = 50 * time.Millisecond
	defaultStop = 30 * time.Second
	maxStop     = time.Hour
	syncLimit   = 5 * time.Second
)

// systemd's signals for an orderly stop (systemd(1), "SIGNALS").
const (
	sigrtMin    = 34
	sigPowerOff = syscall.Signal(sigrtMin + 4)
	sigReboot   = syscall.Signal(sigrtMin + 5)
)

// Shutdown asks for an orderly stop, and sees to it itself when that is not
// done in time. It returns at once; asking again changes nothing.
func (s *System) Shutdown(_ context.Context, req wire.ShutdownRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil
	}
	s.stopping = true
	limit := time.Duration(req.TimeoutMS) * time.Millisecond
	if limit == 0 {
		limit = defaultStop
	}
	go s.stop(req.Reboot, min(limit, maxStop))
	return nil
}

func (s *System) stop(reboot bool, limit time.Duration) {
	backstop := time.NewTimer(limit)
	defer backstop.Stop()
	pause := time.NewTimer(headStart)
	defer pause.Stop()
	select {
	case <-s.life.Done():
		return
	case <-pause.C:
	}
	if err := s.askInit(reboot); err != nil {
		logf("stop: %v", err)
	}
	select {
	case <-s.life.Done():
	case <-backstop.C:
		logf("the system did not stop within %s: stopping the machine", limit)
		haltNow(reboot)
	}
}

// askInit asks PID 1 to stop the system, in the language it speaks.
func (s *System) askInit(reboot bool) error {
	if asked, err := s.pid1.Stop(reboot); asked || err != nil {
		return err
	}
	if hasSystemd() {
		sig := sigPowerOff
		if reboot {
			sig = sigReboot
		}
		return unix.Kill(1, sig)
	}
	// The image's own tool knows how to ask its init.
	tool := "/sbin/poweroff"
	if reboot {
		tool = "/sbin/reboot"
	}
	return exec.CommandContext(s.life, tool).Run()
}

func hasSystemd() bool {
	info, err := os.Stat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// haltNow stops the machine without asking anyone, after writing out what can
// be written in a bounded time.
func haltNow(reboot bool) {
	synced := make(chan struct{})
	go func() {
		defer close(synced)
		unix.Sync()
	}()
	limit := time.NewTimer(syncLimit)
	defer limit.Stop()
	select {
	case <-synced:
	case <-limit.C:
	}
	boot.HaltUnsynced(reboot)
}

// errNotUp says that the image's init was not started.
var errNotUp = errs.New(errs.Conflict, "not_handed_over", "the image's init has not been started")
