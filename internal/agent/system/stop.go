package system

import (
	"context"
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
	askAgain    = 3 * time.Second
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
	ctx, cancel := context.WithTimeout(s.life, limit)
	defer cancel()
	if pause(ctx, headStart) != nil {
		return
	}
	for {
		if err := s.askInit(ctx, reboot); err != nil && ctx.Err() == nil {
			logf("stop: %v", err)
		}
		// A system that is still coming up may have missed it.
		if pause(ctx, askAgain) != nil {
			break
		}
	}
	if s.life.Err() == nil {
		logf("the system did not stop within %s: stopping the machine", limit)
		haltNow(reboot)
	}
}

// askInit asks PID 1 to stop the system, in the language it speaks. Asking
// again does no harm.
func (s *System) askInit(ctx context.Context, reboot bool) error {
	if asked, err := s.pid1.Stop(reboot); asked || err != nil {
		return err
	}
	if boot.IsSystemd(s.handoff.Init) {
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
	return exec.CommandContext(ctx, tool).Run()
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
