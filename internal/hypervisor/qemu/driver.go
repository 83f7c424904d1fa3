// Package qemu is the hypervisor driver for QEMU's microvm machine, with KVM
// or under software emulation. It builds the command line, hands QEMU open
// files in place of paths, speaks QMP, and saves and clones machines with
// their RAM apart from their devices.
//
// It keeps no state about machines (all of that is in hypervisor.Ref), makes no
// disks or networks, and waits for nothing inside the guest. Every QEMU from
// 7.2 on is meant to pass its suite; where versions differ, version.go says so.
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/kvm"
)

// Name is the driver's name.
const Name = "qemu"

// DefaultBinary is looked up in PATH when Options name none.
const DefaultBinary = "qemu-system-x86_64"

// Options are a driver's settings.
type Options struct {
	// Binary is QEMU's program: a path, or a name that is looked up in
	// PATH; "" means DefaultBinary.
	Binary string
	// Launcher is the argv prefix of a program that calls launch.Main,
	// with an absolute path.
	Launcher []string
	// Emulation keeps KVM from being used where it could be.
	Emulation bool
	// KVM is what the KVM probe looks at; zero for this host's.
	KVM kvm.Inputs
}

// Driver starts and finds machines of QEMU.
type Driver struct {
	opts Options

	probing chan struct{} // holds a token while a probe runs
	mu      sync.Mutex
	host    *found
}

// found is what the probe keeps beside what it tells.
type found struct {
	hypervisor.Host
	version version
}

var _ hypervisor.Driver = (*Driver)(nil)

// New makes a driver; it looks at nothing yet.
func New(opts Options) *Driver {
	if opts.Binary == "" {
		opts.Binary = DefaultBinary
	}
	return &Driver{opts: opts, probing: make(chan struct{}, 1)}
}

// Name is "qemu".
func (d *Driver) Name() string { return Name }

// Probe finds QEMU, its version, and whether KVM is usable. What it found is
// kept for the life of the driver; a failure is not, so that QEMU may be
// installed meanwhile.
func (d *Driver) Probe(ctx context.Context) (hypervisor.Host, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return hypervisor.Host{}, err
	}
	return f.Host, nil
}

func (d *Driver) probe(ctx context.Context) (*found, error) {
	select {
	case d.probing <- struct{}{}:
		defer func() { <-d.probing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	f := d.host
	d.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.host = f
	d.mu.Unlock()
	return f, nil
}

func (d *Driver) look(ctx context.Context) (*found, error) {
	binary, err := findBinary(d.opts.Binary)
	if err != nil {
		return nil, err
	}
	v, err := askVersion(ctx, binary)
	if err != nil {
		return nil, err
	}
	f := &found{version: v, Host: hypervisor.Host{
		Driver: Name, Binary: binary, Version: v.String(), Accelerator: hypervisor.KVM,
	}}
	if d.opts.Emulation {
		f.Accelerator, f.WhyNotKVM = hypervisor.Emulation, "software emulation was asked for"
	} else if r := kvm.Probe(ctx, d.opts.KVM); !r.Usable {
		f.Accelerator, f.WhyNotKVM = hypervisor.Emulation, r.Why
	}
	f.Caps = hypervisor.Caps{
		Pause: true, Snapshot: true, GrowDisk: true, UserNet: true, TAP: true,
		MaxCPUs: 32, SafeCPUs: 32, NeedsELF: true, BootTimeout: 30 * time.Second,
	}
	if f.Accelerator == hypervisor.Emulation {
		f.CPUModel = "max"
		f.Caps.MaxCPUs, f.Caps.SafeCPUs = 8, 1
		f.Caps.CodeBuffer = true
		f.Caps.BootTimeout = 2 * time.Minute
		if f.TSCkHz, err = measureTSC(ctx); err != nil {
			return nil, err
		}
		return f, nil
	}
	f.CPUModel, err = hostCPUModel()
	return f, err
}

func findBinary(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", errs.New(errs.Unsupported, "qemu_missing", "QEMU is not installed: no program %q", name).
			WithHint("sudo apt-get install qemu-system-x86").Because(plain(err))
	}
	return path, nil
}

// plain drops the name that exec's errors repeat.
func plain(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// askVersion runs QEMU for its version alone.
func askVersion(ctx context.Context, binary string) (version, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	fail := func(err error) error {
		if ctx.Err() != nil {
			err = ctx.Err()
			return errs.Wrap(err, errs.KindOf(err), "qemu_unusable", "ask QEMU at %s for its version", binary)
		}
		return errs.New(errs.Unsupported, "qemu_unusable", "QEMU at %s does not say its version", binary).
			WithHint("%s --version", binary).Because(err)
	}
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.WaitDelay = time.Second
	out := &capped{limit: 4096}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return version{}, fail(err)
	}
	v, err := parseVersion(out.String())
	if err != nil {
		return version{}, fail(err)
	}
	if v.less(oldest) {
		return version{}, errs.New(errs.Unsupported, "qemu_too_old", "QEMU at %s is version %s, older than %s", binary, v, oldest).
			WithHint("sudo apt-get install qemu-system-x86")
	}
	return v, nil
}

// capped keeps the first bytes that are written to it.
type capped struct {
	bytes.Buffer
	limit int
}

func (c *capped) Write(b []byte) (int, error) {
	if room := c.limit - c.Len(); room > 0 {
		c.Buffer.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

func hostCPUModel() (string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("read CPU model: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10)) // the first CPU is enough
	if err != nil {
		return "", fmt.Errorf("read CPU model: %w", err)
	}
	return parseCPUModel(string(b)), nil
}
