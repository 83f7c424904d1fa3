package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/wire"
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

func upGuest(ctx context.Context, w *work) error {
	m := w.e.machine()
	token, err := readToken(w.dir())
	if w.template != nil {
		token, err = w.template.token()
	}
	if err != nil {
		return err
	}
	limit := w.limits.boot
	dctx, cancel := context.WithTimeoutCause(ctx, limit, errBootLimit)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // the guest cannot answer any more once its machine is gone
		select {
		case <-m.Done():
			cancel()
		case <-stop:
		}
	}()
	c, err := guest.Dial(dctx, m.Ref().Endpoint, token, guest.Options{})
	if err == nil {
		w.client = c
		return w.save(ctx, func(r *Record) { r.GuestState = c.Info().State })
	}
	name := w.rec().Name
	if closed(m.Done()) {
		w.s.drained(ctx, w.rec().Shim)
	}
	last := lastLine(filepath.Join(w.dir(), paths.ConsoleLog))
	hint := fmt.Sprintf("banger logs %s --console · banger rm %s", name, name)
	if last != "" {
		hint = "last console line: " + last + "\n" + hint
	}
	switch {
	case closed(m.Done()):
		return errs.New(errs.Unavailable, codeDiedBooting, "%q ended before its guest answered: %s (kept for you to look at)", name, exitReason(m.Exit())).WithHint("%s", hint)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(context.Cause(dctx), errBootLimit):
		return errs.New(errs.Timeout, codeNoAnswer, "%q did not answer within %s of starting (kept for you to look at)", name, limit).WithHint("%s", hint)
	}
	return err
}

// drained gives the shim of a machine that has ended a moment to write down
// the console's last words; it ends by itself once it has.
func (s *Service) drained(ctx context.Context, ref *shim.Ref) {
	if ref == nil {
		return
	}
	limit := time.NewTimer(500 * time.Millisecond)
	defer limit.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for s.Shims.Alive(*ref) {
		select {
		case <-look.C:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

var errBootLimit = errors.New("boot limit passed")

func downGuest(_ context.Context, w *work) error {
	if w.client != nil {
		w.client.Close()
		w.client = nil
	}
	w.e.setLink(nil)
	return nil
}

// upIdentity gives the guest everything that is this VM's own, and takes the
// client into the VM's link, from where everybody shares it.
func upIdentity(ctx context.Context, w *work) error {
	id, err := w.s.identity(ctx, w.rec())
	if err != nil {
		return err
	}
	ictx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	reply, err := w.client.Identity(ictx, id)
	if err != nil {
		return fmt.Errorf("give %q its identity: %w", w.rec().Name, err)
	}
	for _, warning := range reply.Warnings {
		w.s.log.Warn("identity", "vm", id.VM, "warning", printable(warning, 300))
	}
	if grow := w.grow(ctx); grow != nil {
		return grow
	}
	r, dir := w.rec(), w.dir()
	w.e.setLink(newLink(w.s.ctx, r.Name, w.e.machine().Ref().Endpoint, func() ([]byte, error) { return readToken(dir) }, w.client))
	w.client = nil
	return nil
}

// identity is the one place that says what is a VM's own.
func (s *Service) identity(ctx context.Context, r Record) (wire.Identity, error) {
	dir := s.opt.Layout.VMDir(r.ID)
	key, err := readHostKey(dir)
	if err != nil {
		return wire.Identity{}, err
	}
	token, err := readToken(dir)
	if err != nil {
		return wire.Identity{}, err
	}
	authorized, err := s.SSH.Authorized(ctx)
	if err != nil {
		// a key that cannot be used keeps ssh out, not the VM from running
		s.log.Warn("no ssh key for the VM", "vm", r.ID, "err", err)
	}
	entropy := make([]byte, 64)
	rand.Read(entropy)
	id := wire.Identity{
		Token: token, VM: r.ID, Hostname: r.Name, MachineID: r.MachineID, BootID: r.GuestBoot,
		Entropy: entropy, HostKey: key.Private, HostKeyPub: key.Public, Authorized: authorized,
	}
	for _, v := range r.Spec.Env {
		id.Env = append(id.Env, wire.KV{Key: v.Name, Value: v.Value})
	}
	if r.Link != nil {
		g := r.Link.Guest
		id.MAC = r.Link.MAC
		id.Net = wire.Net{IPv4: g.IPv4, Gateway4: g.Gateway4, IPv6: g.IPv6, Gateway6: g.Gateway6, DNS: g.DNS, MTU: uint32(g.MTU)}
	}
	id.ClockUnixNS = time.Now().UnixNano()
	return id, nil
}

// grow brings the disks of a clone to the size that was asked for, and lets
// the guest's filesystems follow disks that have grown since it last ran.
func (w *work) grow(ctx context.Context) error {
	r := w.rec()
	if w.template == nil && !r.Grown {
		return nil
	}
	if w.template != nil {
		if r.Spec.Disk <= w.template.Disk {
			return nil
		}
		if err := growOnline(ctx, w.e.machine(), w.s.Disks, w.dir(), r.Spec.Disk); err != nil {
			return err
		}
	}
	gctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := w.client.Grow(gctx, wire.GrowRequest{Disks: []string{"system", "work"}}); err != nil {
		return fmt.Errorf("grow the disks of %q: %w", r.Name, err)
	}
	return w.save(ctx, func(r *Record) { r.Grown = false })
}

func growOnline(ctx context.Context, m hypervisor.Machine, disks Disks, dir string, size int64) error {
	g, ok := hypervisor.As[hypervisor.DiskGrower](m)
	if !ok {
		return hypervisor.ErrNoCapability
	}
	for id, file := range map[string]string{"system": paths.SystemDisk, "work": paths.WorkDisk} {
		if err := disks.Grow(filepath.Join(dir, file), size); err != nil {
			return err
		}
		if err := g.GrowDisk(ctx, id, size); err != nil {
			return err
		}
	}
	return nil
}

// upHandover lets the guest go on to its init: at once when somebody waits for
// it to settle, else a moment later, so that a first quick command has the
// machine for itself.
func upHandover(ctx context.Context, w *work) error {
	if w.wait != WaitSystem {
		w.s.handoverLater(w.e)
		return nil
	}
	return w.s.handover(ctx, w.e)
}

// exitReason says in one line how a hypervisor ended.
func exitReason(x hypervisor.Exit) string {
	switch {
	case x.Signal != 0:
		return fmt.Sprintf("the hypervisor was killed by signal %d", x.Signal)
	case x.Reason != "":
		return "the hypervisor ended: " + printable(x.Reason, 200)
	case x.Known && x.Code != 0:
		return fmt.Sprintf("the hypervisor ended with status %d", x.Code)
	case x.Known:
		return "the guest powered off"
	}
	return "the hypervisor ended"
}

// printable makes a guest's text fit for one line of ours.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || (r >= 0x7f && r < 0xa0) || r == 0xfffd || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) || r == 0x200e || r == 0x200f {
			return -1
		}
		return r
	}, s)
	return strings.TrimSpace(clip(s, limit))
}

// lastLine is the last line with something in it of a log's last 4 KiB.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 4096
	if fi, err := f.Stat(); err == nil && fi.Size() > tail {
		if _, err := f.Seek(-tail, 2); err != nil {
			return ""
		}
	}
	b := make([]byte, tail)
	n, _ := f.Read(b)
	lines := strings.Split(strings.ToValidUTF8(string(b[:n]), ""), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if l := printable(lines[i], 200); l != "" {
			return l
		}
	}
	return ""
}
