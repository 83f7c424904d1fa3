package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/shim"
)

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
	for _, step := range reply.Steps[:min(len(reply.Steps), 64)] {
		w.s.log.Debug("identity", "vm", id.VM, "part", printable(step.Name, 40), "took", time.Duration(step.Micros)*time.Microsecond)
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
		id.MAC, id.Net = r.Link.MAC, guestNet(r.Link)
	}
	id.ClockUnixNS = time.Now().UnixNano()
	return id, nil
}

// guestNet is what the guest sets of a link.
func guestNet(l *network.Link) wire.Net {
	g := l.Guest
	return wire.Net{IPv4: g.IPv4, Gateway4: g.Gateway4, IPv6: g.IPv6, Gateway6: g.Gateway6, DNS: g.DNS, MTU: uint32(g.MTU)}
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
	f, err := openLog(path)
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
