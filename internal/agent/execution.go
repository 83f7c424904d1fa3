package agent

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

const (
	// lastWords is how long output is waited for that comes after a
	// command's end from processes that it left behind.
	lastWords = 300 * time.Millisecond
	// pipeSize is what a pipe can still hold of a command that has ended.
	pipeSize = 64 << 10
	// mercy lies between asking a command to end and killing it.
	mercy = 5 * time.Second

	smallRead = 4 << 10
	largeRead = 32 << 10
)

// execution is one command: its process, its output until it is acknowledged,
// and its exit status until the host has it.
type execution struct {
	id     string
	asked  string // the request's bytes
	owner  *execs
	orphan time.Duration
	tty    bool

	stdin  *os.File    // pipe or terminal; nil where no input is wanted
	output [2]*os.File // stdout and stderr, or the terminal and nil

	mu       sync.Mutex
	changed  sync.Cond // anything below
	pid      int
	reaped   bool // pid is no longer ours to signal
	out      [2]ring
	deaf     bool // output is dropped: nobody will come for it
	pending  []byte
	taken    uint64 // of standard input, by the command
	closeAt  *uint64
	stdinEnd bool // no more input is passed on
	timedOut bool
	hungUp   bool
	exit     *wire.Exit
	reader   *reader
	timers   []*time.Timer
	orphaned *time.Timer
}

func newExecution(owner *execs, req *wire.ExecRequest, asked []byte) *execution {
	e := &execution{
		id: req.ID, asked: string(asked), owner: owner, tty: req.TTY,
		orphan: time.Duration(min(req.OrphanMS, 1<<40)) * time.Millisecond,
	}
	e.changed.L = &e.mu
	return e
}

// run starts everything that belongs to a process that was just started.
func (e *execution) run(p *process, timeout time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pid = p.pid
	e.stdin, e.output = p.stdin, p.output
	for i, f := range e.output {
		if f == nil {
			e.out[i].eof = true
			continue
		}
		e.owner.pumps.Go(func() { e.pump(i, f) })
	}
	if e.stdin != nil {
		e.owner.pumps.Go(e.feed)
	} else {
		e.stdinEnd = true
	}
	e.owner.pumps.Go(func() { e.reap(p) })
	if timeout > 0 {
		e.after(timeout, func() {
			e.timedOut = true
			e.signal(unix.SIGTERM)
			e.after(mercy, func() { e.signal(unix.SIGKILL) })
		})
	}
}

// after does f under the lock, unless the command has ended by then.
func (e *execution) after(d time.Duration, f func()) {
	e.timers = append(e.timers, time.AfterFunc(d, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.reaped {
			f()
		}
	}))
}

// pump moves output into its ring, and waits while that is full.
func (e *execution) pump(i int, f *os.File) {
	buf := make([]byte, smallRead)
	late := 0
	var since time.Time
	for {
		e.mu.Lock()
		reaped := e.reaped
		e.mu.Unlock()
		if reaped {
			if since.IsZero() {
				since = time.Now()
			}
			_ = f.SetReadDeadline(time.Now().Add(lastWords))
		}
		n, err := f.Read(buf)
		if n > 0 {
			e.keep(i, buf[:n])
			if reaped {
				late += n
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !reaped {
			continue
		}
		if err != nil || reaped && late > pipeSize && time.Since(since) > lastWords {
			e.drained(i)
			if e.tty || !errors.Is(err, os.ErrDeadlineExceeded) && err != nil {
				f.Close()
				return
			}
			// What the command left behind goes on writing; it must
			// neither block nor die of it.
			e.owner.drain(f, buf)
			return
		}
		if n == len(buf) && n < largeRead {
			buf = make([]byte, largeRead)
		}
	}
}

func (e *execution) keep(i int, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(p) > 0 && !e.deaf {
		n := e.out[i].write(p)
		if n == 0 {
			e.changed.Wait()
			continue
		}
		p = p[n:]
		e.changed.Broadcast()
	}
}

func (e *execution) drained(i int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.out[i].eof = true
	e.changed.Broadcast()
}

// feed passes standard input on.
func (e *execution) feed() {
	for {
		e.mu.Lock()
		for len(e.pending) == 0 && !e.reaped && (e.closeAt == nil || *e.closeAt > e.taken) {
			e.changed.Wait()
		}
		p, over := e.pending, e.reaped
		e.mu.Unlock()
		var err error
		if len(p) > 0 && !over {
			_, err = e.stdin.Write(p)
		}
		e.mu.Lock()
		e.pending = e.pending[len(p):]
		if len(e.pending) == 0 {
			e.pending = nil
		}
		e.taken += uint64(len(p))
		ended := over || err != nil || e.closeAt != nil && *e.closeAt <= e.taken
		if ended {
			e.stdinEnd = true
			e.taken += uint64(len(e.pending))
			e.pending = nil
		}
		e.changed.Broadcast()
		e.mu.Unlock()
		if !ended {
			continue
		}
		if !e.tty {
			e.stdin.Close()
		} else if err == nil && !over {
			_, _ = e.stdin.Write([]byte{4}) // a terminal's end of file
		}
		return
	}
}

// reap waits for the process, then for its last words, then tells its end.
func (e *execution) reap(p *process) {
	ws := p.wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reaped = true
	for _, t := range e.timers {
		t.Stop()
	}
	if e.stdin != nil && !e.tty {
		_ = e.stdin.SetWriteDeadline(time.Unix(1, 0))
	}
	e.changed.Broadcast()
	for _, f := range e.output {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(lastWords))
		}
	}
	for !e.out[0].eof || !e.out[1].eof {
		e.changed.Wait()
	}
	e.exit = exitOf(ws)
	if e.timedOut {
		e.exit.TimedOut, e.exit.Code = true, 124
	}
	e.changed.Broadcast()
	if e.deaf {
		e.forget()
	}
}

func exitOf(ws syscall.WaitStatus) *wire.Exit {
	if ws.Signaled() {
		sig := ws.Signal()
		return &wire.Exit{Code: uint32(128 + int(sig)), Signal: signalName(sig)}
	}
	return &wire.Exit{Code: uint32(ws.ExitStatus())}
}

// signal reaches the command's process group, on a terminal also the group in
// the foreground. Called under the lock.
func (e *execution) signal(sig unix.Signal) {
	if e.reaped || e.pid == 0 {
		return
	}
	if e.tty {
		if fg := e.foreground(); fg > 0 && fg != e.pid {
			_ = unix.Kill(-fg, sig)
			if sig != unix.SIGKILL && sig != unix.SIGHUP && sig != unix.SIGTERM {
				return
			}
		}
	}
	_ = unix.Kill(-e.pid, sig)
}

// foreground is the process group in the terminal's foreground, or 0.
func (e *execution) foreground() int {
	raw, err := e.output[0].SyscallConn()
	if err != nil {
		return 0
	}
	fg := 0
	_ = raw.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil {
			fg = n
		}
	})
	return fg
}

// hangUp ends a command that nobody will read any more. As an orphan it is
// left alone when a reader has come meanwhile.
func (e *execution) hangUp(orphan bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hungUp || orphan && e.reader != nil {
		return
	}
	e.hungUp = true
	e.deaf = true
	e.changed.Broadcast()
	if e.exit != nil {
		e.forget()
		return
	}
	e.signal(unix.SIGHUP)
	e.signal(unix.SIGCONT)
	e.after(mercy, func() { e.signal(unix.SIGKILL) })
}

// kill ends a command at once.
func (e *execution) kill() {
	e.mu.Lock()
	e.deaf = true
	e.signal(unix.SIGKILL)
	if e.exit != nil {
		e.forget()
	}
	e.changed.Broadcast()
	r := e.reader
	e.mu.Unlock()
	if r != nil {
		r.leave(errs.New(errs.Unavailable, "agent_stops", "the agent is stopping"))
	}
}

// forget drops the record of a command that has ended. Called under the lock.
func (e *execution) forget() {
	if e.orphaned != nil {
		e.orphaned.Stop()
	}
	e.owner.remove(e)
}
