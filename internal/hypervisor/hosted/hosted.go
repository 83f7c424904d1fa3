// Package hosted is the hypervisor driver for tests: a "machine" is a plain
// process of the host that runs banger's real agent. Everything above the
// driver (daemon, channel, agent, commands) is the real thing; there is no
// kernel, no disk and no isolation, so it is never chosen unless named, and
// never stands in for a microVM.
package hosted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
)

// Name is the driver's name.
const Name = "hosted"

// Options are a driver's settings.
type Options struct {
	// Command is the argv prefix of a program that calls Main.
	Command []string
}

// Driver starts and finds hosted machines.
type Driver struct{ opts Options }

var _ hypervisor.Driver = (*Driver)(nil)

// New makes a driver.
func New(opts Options) *Driver { return &Driver{opts: opts} }

// Name is "hosted".
func (*Driver) Name() string { return Name }

// Probe says what a hosted machine can do; it can run anywhere.
func (*Driver) Probe(context.Context) (hypervisor.Host, error) {
	return hypervisor.Host{
		Driver: Name, Version: "1", Accelerator: hypervisor.KVM,
		Caps: hypervisor.Caps{Pause: true, Snapshot: true, GrowDisk: true, UserNet: true, MaxCPUs: 64},
	}, nil
}

// config is what a machine's process reads on its standard input.
type config struct {
	ID      string `json:"id"`
	Initrd  string `json:"initrd"`  // the seed: {"token": …}
	Console string `json:"console"` // socket of the shim's, or ""
	Devices string `json:"devices"` // a saved state to go on from, or ""
	State   string `json:"state"`   // where it keeps what a save writes
	Cmdline string `json:"cmdline"`
}

// Words of the kernel command line by which a hosted guest misbehaves.
const (
	Hang  = "hosted.hang"  // it never answers
	Die   = "hosted.die"   // it ends with status 3 after a line on its console
	Flood = "hosted.flood" // it writes to its console without end
	Deaf  = "hosted.deaf"  // it stops neither when asked nor by the power button
)

// Start starts a machine: a process in a session of its own that serves the
// agent on a socket made here.
func (d *Driver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	host, err := d.Probe(ctx)
	if err != nil {
		return nil, err
	}
	if err := hypervisor.Validate(spec, host); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	c := config{ID: spec.ID, Initrd: spec.Initrd, Console: spec.Console.Socket, State: filepath.Join(spec.Dir, "vmm-state"), Cmdline: spec.Cmdline}
	if spec.Restore != nil {
		c.Devices = spec.Restore.Devices
	}
	endpoint := filepath.Join(spec.SockDir, paths.AgentSock)
	p, err := d.spawn(spec, c, endpoint)
	if err != nil {
		os.Remove(endpoint)
		return nil, errs.Wrap(err, errs.Unavailable, "machine_start", "start machine %s", spec.ID)
	}
	if spec.RAM.Shared {
		// as large as RAM would be, and all hole
		err := errors.Join(os.WriteFile(spec.RAM.Path, nil, 0o600), os.Truncate(spec.RAM.Path, spec.Memory))
		if err != nil {
			return nil, errors.Join(err, p.Kill(context.WithoutCancel(ctx)))
		}
	}
	return &machine{p: p, state: c.State, paused: spec.StartPaused, ref: hypervisor.Ref{
		Driver: Name, ID: spec.ID, Process: p.Identity(), Memory: spec.Memory, RAMBase: spec.RAM.Path,
		Control:  c.State,
		Endpoint: hypervisor.Endpoint{Kind: hypervisor.EndpointVsock, Path: endpoint, Port: agentPort},
	}}, nil
}

func (d *Driver) spawn(spec hypervisor.Spec, c config, endpoint string) (*proc.Process, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: endpoint, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	sock, err := l.File()
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("hosted", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	in := os.NewFile(uintptr(fd), "config")
	defer in.Close()
	if _, err := in.WriteAt(text, 0); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(spec.Dir, paths.VMMLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := append([]string(nil), d.opts.Command[1:]...)
	return proc.Start(proc.Cmd{
		Path: d.opts.Command[0], Args: append(args, proc.Marker{VM: spec.ID, Dir: spec.Dir}.String()),
		Env:   []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LANG=C.UTF-8"},
		Stdin: in, Stdout: log, Stderr: log, ExtraFiles: []*os.File{sock},
	})
}

// Adopt finds a machine again.
func (*Driver) Adopt(_ context.Context, ref hypervisor.Ref) (hypervisor.Machine, error) {
	p, err := proc.Open(ref.Process)
	if errors.Is(err, proc.ErrGone) {
		return nil, fmt.Errorf("machine %s: %w", ref.ID, hypervisor.ErrGone)
	}
	if err != nil {
		return nil, err
	}
	return &machine{p: p, ref: ref, state: ref.Control}, nil
}

// machine is a running process.
type machine struct {
	p     *proc.Process
	ref   hypervisor.Ref
	state string

	mu     sync.Mutex
	paused bool
}

var (
	_ hypervisor.Machine    = (*machine)(nil)
	_ hypervisor.Pauser     = (*machine)(nil)
	_ hypervisor.Saver      = (*machine)(nil)
	_ hypervisor.DiskGrower = (*machine)(nil)
)

// Ref is the machine as plain data.
func (m *machine) Ref() hypervisor.Ref { return m.ref }

// Done is closed when the process has ended.
func (m *machine) Done() <-chan struct{} { return m.p.Done() }

// Exit says how it ended.
func (m *machine) Exit() hypervisor.Exit {
	x := m.p.Exit()
	return hypervisor.Exit{Known: x.Known, Code: x.Code, Signal: x.Signal}
}

// PowerButton asks the process to stop in order.
func (m *machine) PowerButton(context.Context) error { return m.p.Signal(syscall.SIGTERM) }

// Kill ends the process.
func (m *machine) Kill(ctx context.Context) error { return m.p.Kill(ctx) }

// Usage is what the process costs.
func (m *machine) Usage() (hypervisor.Usage, error) {
	cpu, err := proc.CPUTime(m.ref.Process)
	return hypervisor.Usage{CPU: cpu}, err
}

// Close drops the handle.
func (m *machine) Close() error { return m.p.Close() }

// Pause stops the process.
func (m *machine) Pause(context.Context) error { return m.signal(true, syscall.SIGSTOP) }

// Resume lets it go on.
func (m *machine) Resume(context.Context) error { return m.signal(false, syscall.SIGCONT) }

func (m *machine) signal(paused bool, sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = paused
	return m.p.Signal(sig)
}

// SaveDevices writes what a restored machine needs: the guest's own state.
func (m *machine) SaveDevices(_ context.Context, path string) error {
	m.mu.Lock()
	paused := m.paused
	m.mu.Unlock()
	if !paused {
		return errs.New(errs.Conflict, "machine_running", "machine %s is not paused", m.ref.ID)
	}
	b, err := os.ReadFile(m.state)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// SaveRAM writes nothing: all state is in the devices.
func (m *machine) SaveRAM(_ context.Context, path string) error {
	return os.WriteFile(path, nil, 0o600)
}

// GrowDisk does nothing: there is no disk.
func (m *machine) GrowDisk(context.Context, string, int64) error { return nil }
