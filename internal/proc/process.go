package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errNoProcess = syscall.ESRCH

// Process is a handle on one running (or just ended) process, a child of this
// one or not. Its methods may be called concurrently. One goroutine waits for
// the process's end; it ends with the process or at Close, whichever is
// first, and for a child it goes on after Close until the child is reaped.
type Process struct {
	id    Identity
	pidfd *os.File
	child *os.Process // nil for a process that is not ours
	done  chan struct{}

	mu    sync.Mutex
	exit  Exit
	close sync.Once
}

// Exit says how a process ended. Known is false when it was not a child of
// this process, which is the only way to learn more than that it ended.
type Exit struct {
	Known  bool
	Code   int // exit status; 0 when Signal is set
	Signal int // the signal that ended it, or 0
}

// Open gets hold of the process that id names, child or not; ErrGone when it
// no longer runs. Close the handle when done; the process is left alone.
func Open(id Identity) (*Process, error) { return open(id, nil) }

func open(id Identity, child *os.Process) (*Process, error) {
	if id.PID <= 0 {
		return nil, fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	p := &Process{id: id, pidfd: os.NewFile(uintptr(fd), "pidfd"), child: child, done: make(chan struct{})}
	// The pidfd pins whatever has the pid now. That it is the one named is
	// checked after pinning: id was taken before, so a later process of the
	// same pid cannot match it. A child cannot have been reaped yet.
	if child == nil {
		if err := verify(id); err != nil {
			p.pidfd.Close()
			return nil, err
		}
	}
	go p.wait()
	return p, nil
}

// wait owns done. Waiting in the network poller costs no thread.
func (p *Process) wait() {
	ended := p.awaitEnd()
	if p.child != nil {
		// Reaped even when the handle was closed: no zombie stays.
		st, err := p.child.Wait()
		p.mu.Lock()
		if err == nil {
			p.exit = exitOf(st)
		}
		p.mu.Unlock()
		ended = true
	}
	if ended {
		close(p.done)
	}
}

// awaitEnd returns true once the process has ended, false once the handle
// was closed.
func (p *Process) awaitEnd() bool {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			ended = err == nil && n == 1 && fds[0].Revents != 0
			return ended || err != nil
		}
	})
	return err == nil && ended
}

func exitOf(st *os.ProcessState) Exit {
	ws, ok := st.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return Exit{}
	case ws.Signaled():
		return Exit{Known: true, Signal: int(ws.Signal())}
	}
	return Exit{Known: true, Code: ws.ExitStatus()}
}

// Identity names the process.
func (p *Process) Identity() Identity { return p.id }

// Done is closed when the process has ended and, if it was a child, was
// reaped. It is never closed after Close on a process that is not a child.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how the process ended; valid once Done is closed.
func (p *Process) Exit() Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Signal sends sig through the pidfd; ErrGone when the process has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: handle closed: %w", p.id.PID, err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = unix.PidfdSendSignal(int(fd), sig, nil, 0)
	}); err != nil {
		return fmt.Errorf("signal process %d: handle closed: %w", p.id.PID, err)
	}
	if errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.id.PID, ErrGone)
	}
	if serr != nil {
		return fmt.Errorf("signal process %d: %w", p.id.PID, serr)
	}
	return nil
}

// Wait waits for the process's end or ctx's.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for process %d: %w", p.id.PID, context.Cause(ctx))
	}
}

// Kill sends SIGKILL and waits for the end. It is idempotent.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
		select {
		case <-p.done: // closed handle of a process that had ended
			return nil
		default:
			return err
		}
	}
	return p.Wait(ctx)
}

// Terminate sends SIGTERM, waits up to grace, then kills. It says whether the
// process went by itself. Cancelling ctx stops the waiting without a kill.
func (p *Process) Terminate(ctx context.Context, grace time.Duration) (clean bool, err error) {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, ErrGone) {
		return false, err
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
		return true, nil
	case <-ctx.Done():
		return false, fmt.Errorf("wait for process %d: %w", p.id.PID, context.Cause(ctx))
	case <-t.C:
		return false, p.Kill(ctx)
	}
}

// Close drops the handle and leaves the process running.
func (p *Process) Close() error {
	var err error
	p.close.Do(func() { err = p.pidfd.Close() })
	return err
}

// Kill kills the process that id names and waits for its end; nil when it is
// gone already.
func Kill(ctx context.Context, id Identity) error {
	p, err := Open(id)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Kill(ctx)
}
