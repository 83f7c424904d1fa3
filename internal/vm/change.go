package vm

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/paths"
)

// SetRequest changes a VM; nil means as it is.
type SetRequest struct {
	Ref          string
	CPUs         *int
	Memory, Disk *int64
	Expires      *time.Duration // from now; 0 is never
	Labels       map[string]string
	RemoveLabels []string
}

// Set changes a VM's spec and says what takes effect with the next start only.
func (s *Service) Set(ctx context.Context, req SetRequest) (View, []string, error) {
	e, err := s.find(req.Ref)
	if err != nil {
		return View{}, nil, err
	}
	_, o, err := s.begin(ctx, e, VerbSet)
	if err != nil {
		return View{}, nil, err
	}
	defer o.End()
	r, f := e.facts()
	spec, err := s.changed(ctx, r, req)
	if err != nil {
		return View{}, nil, err
	}
	labels := maps.Clone(r.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, req.Labels)
	for _, k := range req.RemoveLabels {
		delete(labels, k)
	}
	if err := CheckLabels(labels); err != nil {
		return View{}, nil, err
	}
	var later []string
	if f.Alive && spec.CPUs != r.Spec.CPUs {
		later = append(later, "cpus")
	}
	if f.Alive && spec.Memory != r.Spec.Memory {
		later = append(later, "memory")
	}
	grown := false
	if spec.Disk > r.Spec.Disk {
		// a disk only grows, so the record says the size before the file has it
		if err := s.save(ctx, e, func(r *Record) { r.Spec.Disk, r.Grown = spec.Disk, true }); err != nil {
			return View{}, nil, err
		}
		online, err := s.growDisks(ctx, e, f.Alive, spec.Disk)
		if err != nil {
			return View{}, nil, err
		}
		if grown = !online; grown && f.Alive {
			later = append(later, "disk")
		}
	}
	err = s.save(ctx, e, func(r *Record) {
		spec.Disk = r.Spec.Disk
		r.Spec, r.Labels, r.Grown = spec, labels, grown || (r.Grown && !f.Alive)
		if req.Expires != nil {
			r.Expires = time.Time{}
			if *req.Expires > 0 {
				r.Expires = time.Now().Add(*req.Expires).UTC()
			}
		}
	})
	if err != nil {
		return View{}, nil, err
	}
	if req.Expires != nil {
		e.mu.Lock()
		e.expires = monotonic(e.rec.Expires)
		e.mu.Unlock()
		s.deadlineChanged()
	}
	s.happened(ctx, e.record(), "vm.changed", "changed: "+describe(spec), nil)
	o.End()
	return s.view(e), later, nil
}

// changed is the spec with the request applied, checked as for a new VM.
func (s *Service) changed(ctx context.Context, r Record, req SetRequest) (Spec, error) {
	spec := r.Spec
	spec.Origin = maps.Clone(spec.Origin)
	if spec.Origin == nil {
		spec.Origin = map[string]string{}
	}
	if req.CPUs != nil {
		spec.CPUs, spec.Origin["cpus"] = *req.CPUs, FromFlag
	}
	if req.Memory != nil {
		spec.Memory, spec.Origin["memory"] = *req.Memory, FromFlag
	}
	if req.Disk != nil {
		spec.Disk, spec.Origin["disk"] = *req.Disk, FromFlag
	}
	if req.Expires != nil && *req.Expires < 0 {
		return spec, errs.New(errs.Invalid, "duration_invalid", "a duration cannot be negative").WithHint("for example: --expires 8h")
	}
	h, err := s.hostSize(ctx)
	if err != nil {
		return spec, err
	}
	for _, check := range []func(*Spec, HostSize) error{checkCPUs, checkMemory, checkDisk} {
		if err := check(&spec, h); err != nil {
			return spec, err
		}
	}
	if spec.Disk < r.Spec.Disk {
		return spec, errs.New(errs.Invalid, "disk_shrink", "disk: %s is less than the %s that %q has; a disk only grows", Size(spec.Disk), Size(r.Spec.Disk), r.Name).
			WithHint("make a new VM, or: banger vm set %s --disk %s", r.Name, Size(2*r.Spec.Disk))
	}
	return spec, nil
}

// growDisks grows the files and, in a running VM that can be told, the
// filesystems in them; online says that it is all done.
func (s *Service) growDisks(ctx context.Context, e *entry, alive bool, size int64) (online bool, err error) {
	dir := s.opt.Layout.VMDir(e.record().ID)
	if !alive {
		return false, errors.Join(s.Disks.Grow(filepath.Join(dir, paths.SystemDisk), size), s.Disks.Grow(filepath.Join(dir, paths.WorkDisk), size))
	}
	err = growOnline(ctx, e.machine(), s.Disks, dir, size)
	if errors.Is(err, hypervisor.ErrNoCapability) {
		return false, errors.Join(s.Disks.Grow(filepath.Join(dir, paths.SystemDisk), size), s.Disks.Grow(filepath.Join(dir, paths.WorkDisk), size))
	}
	if err != nil {
		return false, err
	}
	gctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := e.client(gctx)
	if err != nil {
		return false, nil // its next start follows
	}
	if err := c.Grow(gctx, wire.GrowRequest{Disks: []string{"system", "work"}}); err != nil {
		s.log.Warn("the guest did not grow its disks", "vm", e.record().ID, "err", err)
		return false, nil
	}
	return true, nil
}

// Rename gives a VM another name, in its guest too where that runs.
func (s *Service) Rename(ctx context.Context, ref, name string) (View, error) {
	if err := CheckName(name); err != nil {
		return View{}, err
	}
	e, err := s.find(ref)
	if err != nil {
		return View{}, err
	}
	_, o, err := s.begin(ctx, e, VerbRename)
	if err != nil {
		return View{}, err
	}
	defer o.End()
	r := e.record()
	if r.Name == name {
		return s.view(e), nil
	}
	s.mu.Lock()
	if _, taken := s.names[name]; taken {
		s.mu.Unlock()
		return View{}, NameTaken(name)
	}
	s.names[name] = r.ID // reserved before it is written
	s.mu.Unlock()
	drop := name
	if err = s.save(ctx, e, func(r *Record) { r.Name = name }); err == nil {
		drop = r.Name
	}
	s.mu.Lock()
	delete(s.names, drop)
	s.mu.Unlock()
	if err != nil {
		return View{}, err
	}
	s.happened(ctx, e.record(), "vm.renamed", "renamed from "+r.Name, map[string]string{"from": r.Name})
	s.tellName(ctx, e)
	o.End()
	return s.view(e), nil
}

// tellName gives a running guest its new name; one that cannot take it now
// gets it with its next start.
func (s *Service) tellName(ctx context.Context, e *entry) {
	if _, f := e.facts(); !f.Alive {
		return
	}
	ictx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	id, err := s.identity(ictx, e.record())
	if err == nil {
		c, cerr := e.client(ictx)
		if err = cerr; err == nil {
			_, err = c.Identity(ictx, id)
		}
	}
	if err != nil {
		s.log.Warn("the guest keeps its old name until its next start", "vm", e.record().ID, "err", err)
	}
}

// SetWorkspace notes the guest path of the prepared workspace.
func (s *Service) SetWorkspace(ctx context.Context, ref, path string) error {
	e, err := s.find(ref)
	if err != nil {
		return err
	}
	return s.save(ctx, e, func(r *Record) { r.Workspace = path })
}
