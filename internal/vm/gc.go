package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/banger-dev/banger/internal/proc"
)

// GC finds processes and directories of this daemon's that no VM owns, and
// removes them unless dryRun. What does not carry our names, or belongs to
// another user, is never touched.
func (s *Service) GC(ctx context.Context, dryRun bool) (found, removed []string, err error) {
	root := filepath.Dir(s.opt.Layout.VMDir("x"))
	procs, err := proc.Find(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range procs {
		if !s.mine(p) || !isID(p.VM) || p.Dir != s.opt.Layout.VMDir(p.VM) || s.owns(p) {
			continue
		}
		what := fmt.Sprintf("process %d of VM %s", p.Identity.PID, p.VM)
		found = append(found, what)
		if !dryRun && killProcess(ctx, p.Identity) == nil {
			removed = append(removed, what)
		}
	}
	for _, parent := range []string{root, filepath.Dir(s.opt.Layout.VMRun("x"))} {
		list, err := os.ReadDir(parent)
		if err != nil {
			continue
		}
		for _, d := range list {
			if !d.IsDir() || !isID(d.Name()) || s.exists(d.Name()) {
				continue
			}
			dir := filepath.Join(parent, d.Name())
			found = append(found, dir)
			if !dryRun && removeDir(dir) == nil {
				removed = append(removed, dir)
			}
		}
	}
	return found, removed, nil
}

func (s *Service) exists(id string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.vms[id] != nil || s.templates.building(id)
}

// owns says whether a VM's record names the process, or the VM is being
// worked on and may be about to.
func (s *Service) owns(p proc.Found) bool {
	s.mu.RLock()
	e := s.vms[p.VM]
	s.mu.RUnlock()
	if e == nil {
		return s.templates.building(p.VM)
	}
	if verb, _ := s.locks.Current(p.VM); verb != "" {
		return true
	}
	r := e.record()
	return (r.Machine != nil && r.Machine.Process == p.Identity) || (r.Shim != nil && r.Shim.Process == p.Identity)
}

func killProcess(ctx context.Context, id proc.Identity) error { return proc.Kill(ctx, id) }
