package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/qemu/qmp"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
)

// Limits of waiting for QEMU; generous, for hosts are busy.
const (
	startLimit = 60 * time.Second // from start to a running guest
	adoptLimit = 10 * time.Second
	undoLimit  = 10 * time.Second
	endLimit   = 2 * time.Second
)

// Start starts a machine; see hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	host, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	if err := hypervisor.Validate(spec, host.Host); err != nil {
		return nil, err
	}
	if err := notRunning(ctx, spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p, err := prepare(ctx, spec, host)
	if err != nil {
		return nil, err
	}
	cmd, err := p.command(spec, host, d.opts.Launcher)
	if err != nil {
		p.abort()
		return nil, err
	}
	child, err := proc.Start(cmd)
	cmd.Stdin.Close()
	if err != nil {
		p.abort()
		return nil, errs.Wrap(err, errs.Internal, "vmm_start", "start QEMU")
	}
	// Ours have to go first: only then does QEMU's end end its sockets.
	p.close()
	p.ref.Process = child.Identity()
	m := newMachine(p.ref, child)
	if p.broker != nil {
		p.broker.Serve(ctx)
	}
	err = m.begin(ctx, spec, host.version)
	if berr := p.endBroker(); err != nil {
		err = errors.Join(m.explain(err), berr)
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		if kerr := m.Kill(undo); kerr != nil {
			err = errors.Join(err, kerr)
		}
		m.Close()
		p.abort()
		return nil, err
	}
	return m, nil
}

// notRunning refuses to start a machine over its own running self, whose
// control socket is listened on.
func notRunning(ctx context.Context, spec hypervisor.Spec) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(spec.SockDir, paths.ControlSock))
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return nil // nobody listens
	case err == nil:
		c.Close()
	case !errors.Is(err, unix.EAGAIN): // a full queue is somebody's
		return errs.Wrap(err, errs.Internal, "vmm_start", "look for a running machine")
	}
	return errs.New(errs.Conflict, "machine_running", "machine %s runs already", spec.ID)
}

// begin waits for QEMU's control channel and lets the guest run.
func (m *machine) begin(ctx context.Context, spec hypervisor.Spec, v version) error {
	c, err := m.control.get(ctx)
	if err != nil {
		return err
	}
	if spec.Restore != nil {
		if err := load(ctx, c, spec.Restore.Devices, v); err != nil {
			return err
		}
	}
	if spec.StartPaused {
		return nil
	}
	return c.Execute(ctx, "cont", nil, nil)
}

// explain puts the reason from QEMU's log in place of a broken connection's
// error, when QEMU has ended.
func (m *machine) explain(err error) error {
	// Its sockets end a moment before it does.
	end := time.NewTimer(endLimit)
	defer end.Stop()
	if errors.Is(err, hypervisor.ErrGone) || errors.Is(err, qmp.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		select {
		case <-m.done:
			return errs.New(errs.Internal, "vmm_start", "QEMU ended at its start: %s", m.Exit().Reason).
				WithHint("see %s", m.ref.Log)
		case <-end.C:
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errs.Wrap(err, errs.Cancelled, "vmm_start", "start QEMU")
	case errors.Is(err, context.DeadlineExceeded):
		return errs.Wrap(err, errs.Timeout, "vmm_start", "start QEMU")
	}
	return errs.Wrap(err, errs.Internal, "vmm_start", "start QEMU")
}

// Adopt finds a machine again; see hypervisor.Driver.
func (d *Driver) Adopt(ctx context.Context, ref hypervisor.Ref) (hypervisor.Machine, error) {
	if ref.Driver != Name {
		return nil, errs.New(errs.Invalid, "machine_ref_invalid", "machine %s is not QEMU's but %q's", ref.ID, ref.Driver)
	}
	p, err := proc.Open(ref.Process)
	if errors.Is(err, proc.ErrGone) {
		return nil, errs.Wrap(hypervisor.ErrGone, errs.NotFound, "machine_gone", "adopt machine %s", ref.ID)
	}
	if err != nil {
		return nil, errs.Wrap(err, errs.Internal, "machine_adopt", "adopt machine %s", ref.ID)
	}
	m := newMachine(ref, p)
	ctx, cancel := context.WithTimeout(ctx, adoptLimit)
	defer cancel()
	if err := m.reach(ctx); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// reach connects to a running QEMU and checks that it is the one named.
func (m *machine) reach(ctx context.Context) error {
	c, err := m.control.get(ctx)
	if err == nil {
		var name struct {
			Name string `json:"name"`
		}
		err = c.Execute(ctx, "query-name", nil, &name)
		if mark, ok := proc.ParseMarker(name.Name); err == nil && (!ok || mark.VM != m.ref.ID) {
			err = fmt.Errorf("its control socket is another machine's, %.80q", name.Name)
		}
	}
	if err == nil {
		return nil
	}
	if !proc.Alive(m.ref.Process) {
		return errs.Wrap(hypervisor.ErrGone, errs.NotFound, "machine_gone", "adopt machine %s", m.ref.ID)
	}
	return errs.Wrap(err, errs.Unavailable, "machine_silent", "machine %s runs as process %d and its control channel does not answer", m.ref.ID, m.ref.Process.PID)
}
