package vm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/op"
)

// verbCleanup is the daemon's own operation on a VM whose hypervisor ended by
// itself; a caller's verb waits for it rather than fail.
const verbCleanup = "clean up"

// begin takes the VM for a verb.
func (s *Service) begin(ctx context.Context, e *entry, verb string) (context.Context, *op.Operation, error) {
	for {
		r := e.record()
		octx, o, err := s.locks.Begin(ctx, r.ID, r.Name, verb)
		if err == nil {
			e.mu.Lock()
			gone := e.gone
			e.mu.Unlock()
			if gone {
				o.End()
				return nil, nil, errs.New(errs.NotFound, "vm_not_found", "no VM named %q", r.Name).WithHint("banger ps -a lists all")
			}
			return octx, o, nil
		}
		if cur, _ := s.locks.Current(r.ID); cur != verbCleanup && cur != "" {
			return nil, nil, err
		}
		if err := s.locks.Wait(ctx, r.ID); err != nil {
			return nil, nil, err
		}
	}
}

// gate passes reports on until it is shut: work that goes on after its caller
// has left must not speak to it any more.
type gate struct {
	mu  sync.Mutex
	rep op.Reporter
}

func (g *gate) report(e op.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rep != nil {
		g.rep(e)
	}
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rep = nil
}

// finish runs f to its end even when the caller leaves; ctx bounds only the
// caller's waiting. f's own context ends with the service.
func (s *Service) finish(ctx context.Context, rep op.Reporter, f func(context.Context, op.Reporter) error) error {
	g := &gate{rep: rep}
	done := make(chan error, 1)
	s.spawn(func(sctx context.Context) { done <- f(sctx, g.report) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		g.shut()
		return context.Cause(ctx)
	}
}

// StartRequest asks for a stopped VM to run.
type StartRequest struct {
	Ref         string
	Wait        string
	WaitTimeout time.Duration
}

// Start boots a stopped VM on its disks. When ctx ends first, what was done is
// undone and the VM is stopped again.
func (s *Service) Start(ctx context.Context, req StartRequest, rep op.Reporter) (View, error) {
	if err := checkWait(&req.Wait); err != nil {
		return View{}, err
	}
	e, err := s.find(req.Ref)
	if err != nil {
		return View{}, err
	}
	octx, o, err := s.begin(ctx, e, VerbStart)
	if err != nil {
		return View{}, err
	}
	defer o.End()
	if _, f := e.facts(); f.Alive {
		return View{}, Legal(VerbStart, e.name(), StateRunning)
	}
	lim := s.limitsOf(ctx, req.WaitTimeout)
	if err := s.boot(octx, e, req.Wait, lim, rep); err != nil {
		return View{}, err
	}
	o.End()
	if req.Wait == WaitSystem {
		if err := s.settle(ctx, e, lim.wait, rep); err != nil {
			return s.view(e), err
		}
	}
	return s.view(e), nil
}

// boot takes a VM that exists to running, cold, or back to where it was.
func (s *Service) boot(ctx context.Context, e *entry, wait string, lim limits, rep op.Reporter) error {
	w := &work{s: s, e: e, rep: rep, wait: wait, limits: lim}
	if err := w.save(ctx, func(r *Record) {
		r.Intent, r.Doing, r.Failed, r.Reason = Running, VerbStart, nil, ""
		if !r.Expires.After(time.Now()) {
			r.Expires = time.Time{} // its time was up once; who starts it again means it
		}
	}); err != nil {
		return err
	}
	err := w.sources(ctx, false)
	if err == nil {
		stage := rep.Stage("boot", "cold start")
		err = w.raise(ctx, exists)
		stage.End(err, "")
	}
	if err == nil {
		err = w.save(ctx, func(r *Record) { r.Doing = "" })
	}
	if err != nil {
		undone := w.back(ctx, exists)
		saved := w.save(ctx, func(r *Record) {
			r.Intent, r.Doing, r.Reason = Stopped, "", firstLine(err.Error())
			if !errs.Is(err, errs.Cancelled) {
				r.Failed = FailureOf(err)
			}
		})
		s.logFailures(e.record(), undone, saved)
		s.happened(ctx, e.record(), "vm.failed", "not started: "+firstLine(err.Error()), map[string]string{"code": errs.CodeOf(err)})
		return err
	}
	s.started(ctx, e)
	return nil
}

// started watches a machine that has just come up, and says so.
func (s *Service) started(ctx context.Context, e *entry) {
	s.watch(e)
	r := e.record()
	s.happened(ctx, r, "vm.started", "started ("+r.StartKind+")", map[string]string{"start_kind": r.StartKind})
}

// watch notices the end of the VM's machine.
func (s *Service) watch(e *entry) {
	m := e.machine()
	if m == nil {
		return
	}
	s.spawn(func(ctx context.Context) {
		select {
		case <-m.Done():
			s.ended(ctx, e, m)
		case <-ctx.Done():
		}
	})
}

// ended cleans up behind a machine that ended while nobody had asked it to.
func (s *Service) ended(ctx context.Context, e *entry, m hypervisor.Machine) {
	var o *op.Operation
	for o == nil {
		if e.machine() != m {
			return // whoever held the VM has seen to it
		}
		var err error
		if _, o, err = s.begin(ctx, e, verbCleanup); err != nil {
			if ctx.Err() != nil || errs.Is(err, errs.NotFound) {
				return
			}
			if err := s.locks.Wait(ctx, e.record().ID); err != nil {
				return
			}
		}
	}
	defer o.End()
	if e.machine() != m {
		return
	}
	x := m.Exit()
	reason := exitReason(x)
	orderly := x.Known && x.Code == 0 && x.Signal == 0
	s.stopped(ctx, e, reason, !orderly, "vm.exited")
	if e.record().Ephemeral {
		o.End()
		e.owners.expire(s, e)
	}
}

// stopped runs the table back to exists and records why; broken says that it
// ought not to have happened.
func (s *Service) stopped(ctx context.Context, e *entry, reason string, broken bool, kind string) {
	r := e.record()
	s.happened(ctx, r, kind, reason, map[string]string{"reason": reason})
	w := &work{s: s, e: e, recovering: true}
	undone := w.back(ctx, exists)
	saved := w.save(ctx, func(r *Record) {
		r.Intent, r.Doing, r.Reason, r.Failed = Stopped, "", reason, nil
		if broken {
			r.Failed = &Failure{Kind: errs.Unavailable, Code: "vm_ended", Message: reason, Hint: "banger vm logs " + r.Name + " --console · banger vm start " + r.Name}
		}
	})
	s.logFailures(r, undone, saved)
}

// Delete unmakes a VM. One that runs needs force, which also ends whatever is
// being done to it. It is finished even when the caller leaves.
func (s *Service) Delete(ctx context.Context, ref string, force bool) (View, error) {
	e, err := s.find(ref)
	if err != nil {
		return View{}, err
	}
	view := s.view(e)
	return view, s.finish(ctx, nil, func(ctx context.Context, _ op.Reporter) error {
		if force {
			err := s.locks.Cancel(ctx, e.record().ID, errs.New(errs.Conflict, "vm_deleted", "%q was deleted meanwhile", view.Name))
			if err != nil {
				return err
			}
		}
		return s.remove(ctx, e, force)
	})
}

func (s *Service) remove(ctx context.Context, e *entry, force bool) error {
	_, o, err := s.begin(ctx, e, VerbDelete)
	if err != nil {
		if force && errs.Is(err, errs.NotFound) {
			return nil // what was cancelled has undone itself
		}
		return err
	}
	defer o.End()
	r, f := e.facts()
	if !force && f.Alive {
		return Legal(VerbDelete, r.Name, StateRunning)
	}
	w := &work{s: s, e: e}
	if err := w.save(ctx, func(r *Record) { r.Intent, r.Doing = Gone, VerbDelete }); err != nil {
		return err
	}
	if err := w.back(ctx, nothing); err != nil {
		s.logFailures(r, err, w.save(ctx, func(r *Record) {
			r.Doing, r.Failed, r.Reason = "", FailureOf(err), "not all of it could be removed"
		}))
		return errs.New(errs.Internal, "delete_incomplete", "delete %q: not all of it could be removed", r.Name).
			WithHint("try again: banger vm delete --force %s", r.Name).Because(err)
	}
	s.opt.Failpoint("forget.before")
	if err := s.forget(ctx, e); err != nil {
		return err
	}
	s.happened(ctx, r, "vm.deleted", "deleted", nil)
	return nil
}

// Prune deletes every stopped VM (or says which it would), and gives the bytes
// of disk that frees.
func (s *Service) Prune(ctx context.Context, dryRun bool) (done []View, freed int64, err error) {
	var all []error
	for _, v := range s.List(nil) {
		if v.State != StateStopped && v.State != StateBroken {
			continue
		}
		if !dryRun {
			if _, err := s.Delete(ctx, v.ID, false); err != nil {
				all = append(all, fmt.Errorf("%s: %w", v.Name, err))
				continue
			}
		}
		done, freed = append(done, v), freed+v.DiskUsed
	}
	return done, freed, errors.Join(all...)
}
