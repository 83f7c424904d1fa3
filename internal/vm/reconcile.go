package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/paths"
)

// Limits of reconciling.
const (
	adoptLimit    = 10 * time.Second // for one VM
	adoptParallel = 16
	maxSidecar    = 1 << 20
)

// Reconcile makes what is true again what is written, at the daemon's start:
//
//   - a VM that runs and is meant to: adopted, its guest dialled again;
//   - one that is meant to run and does not: cleaned up, stopped, with the
//     reason (the host was rebooted, or its hypervisor ended meanwhile);
//   - a creation or a start that was cut short: undone;
//   - a stop or a deletion that was cut short: finished, in order where the
//     guest is still being asked;
//   - a directory whose row is lost, with a valid record in it: taken back.
//
// It is quick (nothing waits for a guest) and doing it twice changes nothing.
func (s *Service) Reconcile(ctx context.Context) error {
	records, err := s.Store.ListVMs(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, r := range records {
		known[r.ID] = true
		s.remember(r)
	}
	for _, r := range s.sidecars() {
		if known[r.ID] {
			continue
		}
		if err := s.Store.PutVM(ctx, r); err != nil {
			s.log.Error("take back a VM", "vm", r.ID, "err", err)
			continue
		}
		s.remember(r)
		s.happened(ctx, r, "vm.recovered", "taken back from its own record", nil)
	}
	places := make(chan struct{}, adoptParallel)
	var wg sync.WaitGroup
	for _, e := range s.entries() {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			actx, cancel := context.WithTimeout(ctx, adoptLimit)
			defer cancel()
			if err := s.reconcile(actx, e); err != nil {
				s.log.Error("reconcile", "vm", e.record().ID, "name", e.name(), "err", err)
			}
		})
	}
	wg.Wait()
	s.templates.sweep(ctx)
	s.deadlineChanged()
	return ctx.Err()
}

// sidecars are the valid records that lie in VMs' own directories.
func (s *Service) sidecars() []Record {
	root := filepath.Dir(s.opt.Layout.VMDir("x"))
	list, err := os.ReadDir(root)
	if err != nil {
		return nil
	}
	var out []Record
	for _, d := range list {
		if !d.IsDir() || !isID(d.Name()) {
			continue
		}
		path := filepath.Join(root, d.Name(), paths.Sidecar)
		fi, err := os.Lstat(path)
		if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxSidecar || !ourOwn(fi) {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var r Record
		if err := json.Unmarshal(b, &r); err != nil || r.ID != d.Name() || CheckName(r.Name) != nil {
			s.log.Warn("no valid record", "path", path)
			continue
		}
		out = append(out, r)
	}
	return out
}

// ourOwn says whether we wrote a file: where the VM's user owns the directory
// it could put a record of its own there, that names other processes.
func ourOwn(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Uid == uint32(os.Geteuid())
}

func (s *Service) reconcile(ctx context.Context, e *entry) error {
	r := e.record()
	rebooted := r.HostBoot != "" && r.HostBoot != s.opt.BootID
	switch {
	case r.Intent == Gone || r.Doing == VerbDelete:
		return s.undoGone(ctx, e, "vm.deleted", "deleted")
	case r.Doing == VerbCreate:
		return s.undoGone(ctx, e, "vm.abandoned", "not created: the daemon ended meanwhile")
	case r.Doing == VerbStart || r.Doing == VerbRestart:
		s.stopped(ctx, e, "its start was cut short: the daemon ended meanwhile", true, "vm.exited")
		return nil
	case r.Doing == VerbStop && s.goOnStopping(ctx, e):
		return nil
	case r.Doing == VerbStop || r.Doing == VerbKill:
		why := "stopped"
		if !r.Expires.IsZero() && !r.Expires.After(time.Now()) {
			why = "expired"
		}
		s.stopped(ctx, e, why, false, "vm.stopped")
		return nil
	case r.Machine == nil:
		if r.Intent == Running {
			s.stopped(ctx, e, "the daemon ended meanwhile", true, "vm.exited")
		}
		return nil
	}
	m, err := s.adopt(ctx, *r.Machine)
	switch {
	case errors.Is(err, hypervisor.ErrGone) && rebooted:
		s.stopped(ctx, e, "the host was rebooted", false, "vm.exited")
	case errors.Is(err, hypervisor.ErrGone):
		s.stopped(ctx, e, "its hypervisor ended while no daemon ran", true, "vm.exited")
	case err != nil:
		return s.save(ctx, e, func(r *Record) {
			r.Failed, r.Reason = FailureOf(err), "it could not be adopted: "+firstLine(err.Error())
		})
	default:
		s.adopted(ctx, e, m)
	}
	if e.record().Ephemeral {
		e.owners.arm(s, e, s.opt.ReleaseGrace)
	}
	return nil
}

// goOnStopping takes in a VM that was being stopped in order, and goes on with
// that; false where there is nothing to go on with.
func (s *Service) goOnStopping(ctx context.Context, e *entry) bool {
	r := e.record()
	if r.Machine == nil {
		return false
	}
	m, err := s.adopt(ctx, *r.Machine)
	if err != nil {
		return false
	}
	s.adopted(ctx, e, m)
	s.spawn(func(ctx context.Context) {
		if _, err := s.Stop(ctx, r.ID, 0, false, nil); err != nil && ctx.Err() == nil {
			s.log.Error("go on stopping", "vm", r.ID, "err", err)
		}
	})
	return true
}

func (s *Service) adopt(ctx context.Context, ref hypervisor.Ref) (hypervisor.Machine, error) {
	d, err := s.driverOf(ref)
	if err != nil {
		return nil, err
	}
	return d.Adopt(ctx, ref)
}

// adopted takes a running machine in.
func (s *Service) adopted(ctx context.Context, e *entry, m hypervisor.Machine) {
	r, dir := e.record(), s.opt.Layout.VMDir(e.record().ID)
	e.setMachine(m)
	e.setLink(newLink(s.ctx, r.Name, m.Ref().Endpoint, func() ([]byte, error) { return readToken(dir) }, nil))
	s.watch(e)
	if r.GuestState == "early" {
		s.handoverLater(e)
	}
	if r.Shim != nil && !s.Shims.Alive(*r.Shim) {
		s.log.Warn("the shim is gone: no network and no console log until the next start", "vm", r.ID)
		s.logFailures(r, s.save(ctx, e, func(r *Record) {
			r.Reason = "its network is gone: the shim ended (banger vm restart " + r.Name + ")"
		}))
	}
	s.log.Info("adopted", "vm", r.ID, "name", r.Name, "pid", m.Ref().Process.PID)
}

// undoGone finishes a deletion, or undoes a creation.
func (s *Service) undoGone(ctx context.Context, e *entry, kind, message string) error {
	r := e.record()
	w := &work{s: s, e: e, recovering: true}
	if err := w.back(ctx, nothing); err != nil {
		return errors.Join(fmt.Errorf("remove: %w", err), w.save(ctx, func(r *Record) {
			r.Intent, r.Failed, r.Reason = Gone, FailureOf(err), "not all of it could be removed"
		}))
	}
	if err := s.forget(ctx, e); err != nil {
		return err
	}
	s.happened(ctx, r, kind, message, nil)
	return nil
}
