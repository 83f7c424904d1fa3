package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
	"github.com/banger-dev/banger/internal/shim"
)

// What a start waits for.
const (
	WaitAgent  = "agent"  // commands can run
	WaitSystem = "system" // the image's init has settled
)

// limits bound one start.
type limits struct {
	boot time.Duration // to the agent's first answer
	wait time.Duration // for the init to settle, with WaitSystem
}

func upLink(ctx context.Context, w *work) error {
	r := w.rec()
	if r.Spec.Network == "none" {
		return w.save(ctx, func(r *Record) { r.Link = nil })
	}
	backend := w.s.Networks[r.Spec.Network]
	if backend == nil {
		return errs.New(errs.Unsupported, "network_missing", "network %q is not to be had here", r.Spec.Network).WithHint("banger doctor")
	}
	l, err := backend.Attach(ctx, r.ID)
	if err != nil {
		return err
	}
	return w.save(ctx, func(r *Record) { r.Link = &l })
}

func downLink(ctx context.Context, w *work) error {
	r := w.rec()
	if r.Link == nil {
		return nil
	}
	if backend := w.s.Networks[r.Link.Backend]; backend != nil {
		if err := backend.Detach(ctx, *r.Link); err != nil {
			return err
		}
	}
	return w.save(ctx, func(r *Record) { r.Link = nil })
}

func upShim(ctx context.Context, w *work) error {
	r := w.rec()
	if err := removeFiles(w.run(), paths.ConsoleSock, paths.ShimSock); err != nil {
		return err
	}
	c := shim.Config{
		VM:            r.ID,
		ConsoleSocket: filepath.Join(w.run(), paths.ConsoleSock),
		ConsoleLog:    filepath.Join(w.dir(), paths.ConsoleLog),
		Control:       filepath.Join(w.run(), paths.ShimSock),
	}
	var theirs *os.File
	if r.Link != nil && r.Link.Stack != nil {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("join the network: %w", err)
		}
		w.nic = os.NewFile(uintptr(pair[0]), "nic")
		theirs = os.NewFile(uintptr(pair[1]), "stack")
		defer theirs.Close()
		c.Net = r.Link
	}
	ref, err := w.s.Shims.Start(ctx, c, w.dir(), theirs, w.cred())
	if err != nil {
		return err
	}
	return w.save(ctx, func(r *Record) { r.Shim = &ref })
}

func downShim(ctx context.Context, w *work) error {
	if w.nic != nil {
		w.nic.Close()
		w.nic = nil
	}
	r := w.rec()
	if r.Shim != nil {
		if err := w.s.Shims.Stop(ctx, *r.Shim); err != nil {
			return err
		}
	}
	if w.recovering {
		if err := w.s.reap(ctx, w.dir(), "shim"); err != nil {
			return err
		}
	}
	if err := removeFiles(w.run(), paths.ConsoleSock, paths.ShimSock); err != nil {
		return err
	}
	if r.Shim == nil {
		return nil
	}
	return w.save(ctx, func(r *Record) { r.Shim = nil })
}

// reap kills processes that carry the mark of the VM whose directory is dir
// and that no record names: what a daemon killed between starting a process
// and writing its name down left behind.
func (s *Service) reap(ctx context.Context, dir, what string) error {
	found, err := proc.Find(ctx, dir)
	if err != nil {
		return err
	}
	var all []error
	for _, f := range found {
		if !s.mine(f) || f.Dir != dir {
			continue
		}
		isShim := len(f.Args) > 1 && f.Args[1] == "shim"
		if (what == "shim") != isShim {
			continue
		}
		s.log.Warn("ending a process without a record", "vm", f.VM, "pid", f.Identity.PID)
		all = append(all, killProcess(ctx, f.Identity))
	}
	return errors.Join(all...)
}

// mine says whether a marked process can be ours: anyone may imitate a marker
// in a process of their own.
func (s *Service) mine(f proc.Found) bool {
	if f.UID == uint32(os.Geteuid()) {
		return true
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.opt.FirstUID != 0 && s.uids[f.UID] == f.VM
}

func upMachine(ctx context.Context, w *work) error {
	r := w.rec()
	size, err := w.s.hostSize(ctx)
	if err != nil {
		return err
	}
	if err := checkRoom(r.Name, r.Spec, size); err != nil {
		return err
	}
	host := size.Hypervisor
	if err := w.save(ctx, func(r *Record) {
		r.Step = "machine"
		r.HostBoot = w.s.opt.BootID
		r.Hypervisor, r.Accelerator = w.s.Driver.Name(), string(host.Accelerator)
		r.StartKind, r.Template = "cold", ""
		if w.template != nil {
			r.StartKind, r.Template = "template:agent", w.template.Key
		}
	}); err != nil {
		return err
	}
	m, err := w.s.Driver.Start(ctx, w.machineSpec())
	if w.nic != nil {
		w.nic.Close()
		w.nic = nil
	}
	if err != nil {
		return err
	}
	w.e.setMachine(m)
	ref := m.Ref()
	return w.save(ctx, func(r *Record) { r.Machine, r.Started = &ref, time.Now().UTC() })
}

// machineSpec is the VM as its hypervisor is told of it.
func (w *work) machineSpec() hypervisor.Spec {
	r := w.rec()
	spec := hypervisor.Spec{
		ID: r.ID, Dir: w.dir(), SockDir: w.run(), User: w.cred(),
		CPUs: r.Spec.CPUs, Memory: r.Spec.Memory,
		Kernel: w.kernel.VMLinux, KernelHZ: w.kernel.Manifest.HZ,
		Initrd:  filepath.Join(w.dir(), initrdFile),
		Cmdline: w.s.Boot.Cmdline(r.Spec.BootArgs),
		Disks:   diskList(r.Image.Rootfs, w.dir(), w.kernel.Modules),
		Console: hypervisor.Console{Socket: filepath.Join(w.run(), paths.ConsoleSock)},
	}
	if r.Link != nil {
		spec.Nets = []hypervisor.Netdev{netdev(r.Link, w.nic)}
	}
	if t := w.template; t != nil {
		spec.Initrd, spec.Cmdline = t.file(initrdFile), t.Cmdline
		spec.RAM = hypervisor.RAMFile{Path: t.file(paths.RAMFile)}
		spec.Restore = &hypervisor.Restore{Devices: t.file(paths.Devices)}
	}
	return spec
}

// diskList is every VM's disks in their order; the agent finds them by id.
func diskList(rootfs, dir, modules string) []hypervisor.Disk {
	disks := []hypervisor.Disk{
		{ID: "image", Path: rootfs, ReadOnly: true},
		{ID: "system", Path: filepath.Join(dir, paths.SystemDisk)},
		{ID: "work", Path: filepath.Join(dir, paths.WorkDisk)},
	}
	if modules != "" {
		disks = append(disks, hypervisor.Disk{ID: "modules", Path: modules, ReadOnly: true})
	}
	return disks
}

// seed is what the agent of a machine with diskList's disks needs.
func seed(token []byte, k kernel.Kernel) Seed {
	s := Seed{Token: token}
	for _, d := range diskList("", "", k.Modules) {
		s.Disks = append(s.Disks, d.ID)
	}
	return s
}

func netdev(l *network.Link, nic *os.File) hypervisor.Netdev {
	return hypervisor.Netdev{ID: "net0", MAC: l.MAC, MTU: l.MTU, File: nic, TAP: l.TAP}
}

func downMachine(ctx context.Context, w *work) error {
	r := w.rec()
	m := w.e.machine()
	if m == nil && r.Machine != nil {
		d, err := w.s.driverOf(*r.Machine)
		if err != nil {
			return err
		}
		m, err = d.Adopt(ctx, *r.Machine)
		if err != nil && !errors.Is(err, hypervisor.ErrGone) {
			return err
		}
	}
	if m != nil {
		if err := m.Kill(ctx); err != nil {
			return err
		}
		m.Close()
		w.e.setMachine(nil)
	}
	if w.recovering {
		if err := w.s.reap(ctx, w.dir(), "machine"); err != nil {
			return err
		}
	}
	if err := removeFiles(w.run(), paths.ControlSock, paths.AgentSock); err != nil {
		return err
	}
	return w.save(ctx, func(r *Record) {
		r.Machine, r.Template, r.Step, r.GuestState = nil, "", "", ""
		if !r.Started.IsZero() {
			r.Ended = time.Now().UTC()
		}
	})
}
