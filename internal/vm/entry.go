package vm

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/paths"
)

// entry is one VM in the daemon's memory: the record as stored, and the
// handles of what runs.
type entry struct {
	saving sync.Mutex // one write of this VM at a time

	mu     sync.Mutex
	rec    Record
	mach   hypervisor.Machine // nil when nothing runs
	paused bool
	link   *link // nil when nothing runs
	gone   bool  // deleted: writes nothing any more
	// expires is rec.Expires on the monotonic clock.
	expires time.Time
	owners  owners
	users   int // calls that use the guest now
	// memory is what the hypervisor held privately when it was measured.
	memory   int64
	measured time.Time
}

// privateMemory measures what the machine holds privately, unless that was done
// a moment ago or the deadline has passed.
func (e *entry) privateMemory(m hypervisor.Machine, deadline time.Time) int64 {
	e.mu.Lock()
	last, at := e.memory, e.measured
	e.mu.Unlock()
	now := time.Now()
	if now.Sub(at) < usageFresh || (!deadline.IsZero() && now.After(deadline)) {
		return last
	}
	u, err := m.Usage()
	if err != nil {
		return 0 // it is ending
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.memory, e.measured = u.Private, now
	return u.Private
}

// use notes that a call uses the guest, until what it returns is called.
func (e *entry) use() (done func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.users++
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.users--
	}
}

func (e *entry) inUse() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.users > 0
}

func (e *entry) record() Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec
}

func (e *entry) name() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec.Name
}

func (e *entry) facts() (Record, Facts) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec, Facts{Alive: e.mach != nil && !closed(e.mach.Done()), Paused: e.paused}
}

func (e *entry) machine() hypervisor.Machine {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mach
}

func (e *entry) setMachine(m hypervisor.Machine) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mach, e.measured = m, time.Time{}
}

func (e *entry) setLink(l *link) {
	e.mu.Lock()
	old := e.link
	e.link = l
	e.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// client gives the guest's client, waiting for it until ctx ends.
func (e *entry) client(ctx context.Context) (*guest.Client, error) {
	e.mu.Lock()
	l, name := e.link, e.rec.Name
	e.mu.Unlock()
	if l == nil {
		return nil, errs.New(errs.Conflict, "vm_stopped", "%q is not running", name).WithHint("banger vm start %s", name)
	}
	return l.get(ctx)
}

// release lets go of what runs without touching it.
func (e *entry) release() {
	e.setLink(nil)
	e.mu.Lock()
	m := e.mach
	e.mach = nil
	e.mu.Unlock()
	e.owners.stop()
	if m != nil {
		m.Close()
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// save changes the record, durably: first in the store, then in the VM's own
// directory, from which a lost store is rebuilt. Intent is saved before the
// act, so a save ignores the caller's cancellation.
func (s *Service) save(ctx context.Context, e *entry, change func(*Record)) error {
	e.saving.Lock()
	defer e.saving.Unlock()
	e.mu.Lock()
	r, gone := e.rec, e.gone
	e.mu.Unlock()
	if gone {
		return errs.New(errs.NotFound, "vm_not_found", "no VM named %q", r.Name).WithHint("banger ps -a lists all")
	}
	change(&r)
	if err := s.Store.PutVM(context.WithoutCancel(ctx), r); err != nil {
		return err
	}
	e.mu.Lock()
	e.rec = r
	e.mu.Unlock()
	return s.writeSidecar(r)
}

// writeSidecar keeps a copy of the record beside what it describes.
func (s *Service) writeSidecar(r Record) error {
	dir := s.opt.Layout.VMDir(r.ID)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // not made yet, or gone already
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return storeErr(fsx.WriteFile(filepath.Join(dir, paths.Sidecar), append(b, '\n'), 0o600))
}

// storeErr classifies a failed write of our own files.
func storeErr(err error) error {
	if err != nil && fsx.IsFull(err) {
		return errs.New(errs.Exhausted, "disk_full", "no space left for the VM's files").
			WithHint("free some space: banger vm prune").Because(err)
	}
	return err
}

// insert takes a new VM into memory and the store, its name and uid reserved
// at once, so that of two VMs that want one name exactly one is made.
func (s *Service) insert(ctx context.Context, r Record) (*entry, error) {
	s.mu.Lock()
	if r.Name == "" {
		r.Name = makeName(func(n string) bool { _, ok := s.names[n]; return ok })
	}
	if _, ok := s.names[r.Name]; ok {
		s.mu.Unlock()
		return nil, NameTaken(r.Name)
	}
	if s.opt.FirstUID != 0 {
		r.UID = s.opt.FirstUID
		for s.uids[r.UID] != "" {
			r.UID++
		}
		s.uids[r.UID] = r.ID
	}
	s.names[r.Name] = r.ID
	s.mu.Unlock()

	if err := s.Store.PutVM(ctx, r); err != nil {
		s.mu.Lock()
		delete(s.names, r.Name)
		delete(s.uids, r.UID)
		s.mu.Unlock()
		return nil, err
	}
	return s.remember(r), nil
}

// remember puts a stored record into memory.
func (s *Service) remember(r Record) *entry {
	e := &entry{rec: r, expires: monotonic(r.Expires)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vms[r.ID] = e
	s.names[r.Name] = r.ID
	if r.UID != 0 {
		s.uids[r.UID] = r.ID
	}
	return e
}

// forget drops a VM from the store and from memory, last of all.
func (s *Service) forget(ctx context.Context, e *entry) error {
	e.saving.Lock()
	defer e.saving.Unlock()
	r := e.record()
	if err := s.Store.DeleteVM(context.WithoutCancel(ctx), r.ID); err != nil {
		return err
	}
	e.mu.Lock()
	e.gone = true
	e.mu.Unlock()
	e.owners.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.vms, r.ID)
	if s.names[r.Name] == r.ID {
		delete(s.names, r.Name)
	}
	if s.uids[r.UID] == r.ID {
		delete(s.uids, r.UID)
	}
	return nil
}

// monotonic puts a stored wall time on the monotonic clock: from now on a jump
// of the wall clock neither hastens nor delays it.
func monotonic(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	now := time.Now()
	return now.Add(t.Sub(now.Round(0)))
}
