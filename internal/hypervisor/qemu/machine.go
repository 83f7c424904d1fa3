package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/qemu/qmp"
	"github.com/banger-dev/banger/internal/proc"
)

// commandLimit bounds a control command that a healthy QEMU answers at once.
const commandLimit = 10 * time.Second

// machine is a handle on one QEMU. Its one goroutine ends with the process or
// at Close.
type machine struct {
	ref     hypervisor.Ref
	proc    *proc.Process
	control *control
	done    chan struct{}
	closed  chan struct{}
	close   sync.Once

	mu     sync.Mutex
	exit   hypervisor.Exit
	cause  hypervisor.Cause // as the last SHUTDOWN event told it
	killed bool
}

var (
	_ hypervisor.Machine    = (*machine)(nil)
	_ hypervisor.Pauser     = (*machine)(nil)
	_ hypervisor.Saver      = (*machine)(nil)
	_ hypervisor.DiskGrower = (*machine)(nil)
)

func newMachine(ref hypervisor.Ref, p *proc.Process) *machine {
	m := &machine{ref: ref, proc: p, done: make(chan struct{}), closed: make(chan struct{})}
	m.control = newControl(ref.Control, p.Done(), m.event)
	go m.watch()
	return m
}

// watch owns done and exit.
func (m *machine) watch() {
	select {
	case <-m.proc.Done():
	case <-m.closed:
		return
	}
	// With the process its sockets ended: what it said last is read now.
	m.control.drain()
	m.mu.Lock()
	m.exit = exitOf(m.proc.Exit(), m.cause, m.killed, lastLine(m.ref.Log))
	m.mu.Unlock()
	close(m.done)
}

// event is called by the control connection's reader.
func (m *machine) event(e qmp.Event) {
	if e.Name != "SHUTDOWN" {
		return
	}
	var d struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(e.Data, &d) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cause = causeOf(d.Reason)
}

func (m *machine) Ref() hypervisor.Ref   { return m.ref }
func (m *machine) Done() <-chan struct{} { return m.done }

func (m *machine) Exit() hypervisor.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

// Kill ends QEMU. Its sockets' names stay until the next start or until the
// caller removes their directory.
func (m *machine) Kill(ctx context.Context) error {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	if err := m.proc.Kill(ctx); err != nil {
		return errs.Wrap(err, kindOf(err), "machine_kill_failed", "kill machine %s", m.ref.ID)
	}
	select {
	case <-m.done:
	case <-m.closed:
	}
	return nil
}

func (m *machine) Close() error {
	var err error
	m.close.Do(func() {
		close(m.closed)
		m.control.close()
		err = m.proc.Close()
	})
	return err
}

// PowerButton presses the ACPI power button.
func (m *machine) PowerButton(ctx context.Context) error {
	return m.execute(ctx, "press the power button of", "system_powerdown", nil, nil)
}

func (m *machine) Pause(ctx context.Context) error {
	return m.execute(ctx, "pause", "stop", nil, nil)
}

func (m *machine) Resume(ctx context.Context) error {
	return m.execute(ctx, "resume", "cont", nil, nil)
}

// GrowDisk tells the guest of a disk's new size; the file has it already.
func (m *machine) GrowDisk(ctx context.Context, diskID string, size int64) error {
	return m.execute(ctx, "grow a disk of", "block_resize", map[string]any{"node-name": blockNode(diskID), "size": size}, nil)
}

// execute runs one control command within commandLimit.
func (m *machine) execute(ctx context.Context, what, command string, args, result any) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	c, err := m.control.get(ctx)
	if err == nil {
		err = c.Execute(ctx, command, args, result)
	}
	return m.failed(err, what)
}

// failed gives an error of the control channel its kind.
func (m *machine) failed(err error, what string) error {
	if err == nil {
		return nil
	}
	var qe *qmp.Error
	var known *errs.Error
	switch {
	case errors.As(err, &known):
		return fmt.Errorf("%s machine %s: %w", what, m.ref.ID, err)
	case errors.Is(err, hypervisor.ErrGone):
		return errs.Wrap(err, errs.Unavailable, "machine_gone", "%s machine %s", what, m.ref.ID)
	case errors.As(err, &qe):
		return errs.Wrap(err, errs.Internal, "machine_control", "%s machine %s", what, m.ref.ID)
	}
	return errs.Wrap(err, kindOf(err), "machine_control", "%s machine %s", what, m.ref.ID)
}

// kindOf is the kind of a failure to talk to a process: a limit, or silence.
func kindOf(err error) errs.Kind {
	if k := errs.KindOf(err); k == errs.Timeout || k == errs.Cancelled {
		return k
	}
	return errs.Unavailable
}
