package vm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/op"
)

// CreateRequest is what a caller asks a new VM to be.
type CreateRequest struct {
	Name         string // "" makes one up
	Spec         Spec   // zero values are derived
	NoStart      bool
	Cold         bool // boot, even where a template could be cloned
	Wait         string
	Ephemeral    bool
	Expires      time.Duration // from now; 0 is never
	Labels       map[string]string
	WaitTimeout  time.Duration // 0: the configuration's
	ValidateOnly bool
}

// Create makes a VM and, unless NoStart, starts it. When it fails or ctx ends
// before it is done nothing is left, but for one case: a VM whose guest never
// became reachable is kept, stopped, so that its log can be looked at.
func (s *Service) Create(ctx context.Context, req CreateRequest, rep op.Reporter) (View, error) {
	spec, err := s.validate(ctx, &req)
	if err != nil {
		return View{}, err
	}
	if req.ValidateOnly {
		return View{Record: Record{Name: req.Name, Spec: spec, Labels: req.Labels}, State: StateCreating}, nil
	}
	rep.Note("spec", describe(spec))
	r := Record{
		ID: newID(), Name: req.Name, Intent: Running, Created: time.Now().UTC(), Spec: spec,
		Labels: req.Labels, Ephemeral: req.Ephemeral, Doing: VerbCreate,
	}
	if req.NoStart {
		r.Intent = Stopped
	}
	if req.Expires > 0 {
		r.Expires = time.Now().Add(req.Expires).UTC()
	}
	s.opt.Failpoint("row.before")
	e, err := s.insert(ctx, r)
	if err != nil {
		return View{}, err
	}
	s.opt.Failpoint("row.after")
	octx, o, err := s.begin(ctx, e, VerbCreate)
	if err != nil {
		return View{}, errors.Join(err, s.forget(ctx, e))
	}
	defer o.End()
	w := &work{s: s, e: e, rep: rep, wait: req.Wait, limits: s.limitsOf(ctx, req.WaitTimeout)}
	if err := s.make(octx, w, req); err != nil {
		return View{}, s.abandon(ctx, w, err)
	}
	if octx.Err() != nil { // the caller left at the last moment: nobody knows of it
		return View{}, s.abandon(ctx, w, context.Cause(octx))
	}
	if err := w.save(ctx, func(r *Record) { r.Doing, r.Reason, r.Failed = "", "", nil }); err != nil {
		return View{}, s.abandon(ctx, w, err)
	}
	s.happened(ctx, e.record(), "vm.created", "created", map[string]string{"image": spec.Image})
	if !req.NoStart {
		s.started(ctx, e)
	}
	if req.Ephemeral {
		e.owners.arm(s, e, s.opt.ReleaseGrace)
	}
	s.deadlineChanged()
	o.End()
	if !req.NoStart && req.Wait == WaitSystem {
		if err := s.settle(ctx, e, w.limits.wait, rep); err != nil {
			return s.view(e), err
		}
	}
	return s.view(e), nil
}

// validate refuses what cannot be, before anything is written.
func (s *Service) validate(ctx context.Context, req *CreateRequest) (Spec, error) {
	if req.Name != "" {
		if err := CheckName(req.Name); err != nil {
			return Spec{}, err
		}
		s.mu.RLock()
		_, taken := s.names[req.Name]
		s.mu.RUnlock()
		if taken {
			return Spec{}, NameTaken(req.Name)
		}
	}
	if err := checkWait(&req.Wait); err != nil {
		return Spec{}, err
	}
	if req.Expires < 0 || req.WaitTimeout < 0 {
		return Spec{}, errs.New(errs.Invalid, "duration_invalid", "a duration cannot be negative").WithHint("for example: --expires 8h")
	}
	if req.Ephemeral && req.NoStart {
		return Spec{}, errs.New(errs.Invalid, "ephemeral_no_start", "a VM that goes with its command cannot be made without starting it").
			WithHint("leave out --rm or --no-start")
	}
	if err := CheckLabels(req.Labels); err != nil {
		return Spec{}, err
	}
	host, err := s.hostSize(ctx)
	if err != nil {
		return Spec{}, err
	}
	spec, err := Resolve(req.Spec, s.opt.Defaults, host)
	if err != nil {
		return Spec{}, err
	}
	return spec, s.Images.Known(ctx, spec.Image)
}

func checkWait(wait *string) error {
	switch *wait {
	case "":
		*wait = WaitAgent
	case WaitAgent, WaitSystem:
	default:
		return errs.New(errs.Invalid, "wait_invalid", "wait: %q is not agent or system", clip(*wait, 40)).WithHint("--wait system")
	}
	return nil
}

func describe(s Spec) string {
	return fmt.Sprintf("%s, %d cpu, %s memory, %s disk", s.Image, s.CPUs, Size(s.Memory), Size(s.Disk))
}

func (s *Service) limitsOf(ctx context.Context, asked time.Duration) limits {
	l := limits{boot: s.opt.BootTimeout, wait: 5 * time.Minute}
	if h, err := s.Driver.Probe(ctx); err == nil && h.Caps.BootTimeout > l.boot {
		l.boot = h.Caps.BootTimeout
	}
	if asked > 0 {
		l = limits{boot: asked, wait: asked}
	}
	return l
}

// make finds what the VM is made from and goes through the table.
func (s *Service) make(ctx context.Context, w *work, req CreateRequest) error {
	if err := w.sources(ctx, true); err != nil {
		return err
	}
	if req.NoStart {
		return w.forward(ctx, nothing, exists)
	}
	if !req.Cold {
		w.template = s.templates.forVM(ctx, w)
	}
	if w.template != nil {
		stage := w.rep.Stage("clone", "from template")
		err := w.raise(ctx, nothing)
		stage.End(err, "")
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.log.Warn("a clone did not come up; booting cold", "vm", w.rec().ID, "step", failedStep(err), "err", err)
		w.rep.Note("clone", "the template's clone did not come up ("+err.Error()+"); booting cold")
		if err := w.back(ctx, nothing); err != nil {
			return err
		}
		s.templates.suspect(w.template)
		w.template = nil
	}
	stage := w.rep.Stage("boot", "cold start")
	err := w.raise(ctx, nothing)
	stage.End(err, "")
	return err
}

// raise goes through the table to a running VM, taking its turn to boot.
func (w *work) raise(ctx context.Context, from level) error {
	if err := w.forward(ctx, from, exists); err != nil {
		return err
	}
	done, err := w.s.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return w.forward(ctx, exists, runs)
}

// turnLimit is how long one boot keeps its place: one that hangs must not keep
// the others from starting until its own limit has passed.
const turnLimit = 20 * time.Second

// turn waits for a place among the boots at the same time; done gives it back.
func (s *Service) turn(ctx context.Context) (done func(), err error) {
	select {
	case s.boots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	leave := sync.OnceFunc(func() { <-s.boots })
	late := time.AfterFunc(turnLimit, leave)
	return func() { late.Stop(); leave() }, nil
}

// sources resolves image and kernel; pull says that they may be fetched.
func (w *work) sources(ctx context.Context, first bool) error {
	r := w.rec()
	img, err := w.s.Images.Ensure(ctx, r.Spec.Image, w.rep)
	if err != nil {
		return err
	}
	name := r.Spec.Kernel
	if name == "" {
		name = img.Manifest.Kernel
	}
	krn, err := w.s.Kernels.Ensure(ctx, name, w.rep)
	if err != nil {
		return err
	}
	w.image, w.kernel = img, krn
	return w.save(ctx, func(r *Record) {
		if first {
			r.Image = ImageRef{Digest: img.Manifest.Digest, Rootfs: img.Rootfs, Init: img.Manifest.Init}
			if r.Spec.Kernel == "" {
				r.Spec.Kernel = name
				if r.Spec.Origin != nil {
					r.Spec.Origin["kernel"] = "image"
				}
			}
		}
		r.Kernel = KernelRef{Digest: krn.Manifest.Digest, Release: krn.Manifest.Release}
	})
}

// abandon undoes a creation that failed, or keeps a VM that booted and was
// never reached, and gives the error to tell.
func (s *Service) abandon(ctx context.Context, w *work, cause error) error {
	r := w.rec()
	if unreachable(cause) {
		undone := w.back(ctx, exists)
		saved := w.save(ctx, func(r *Record) {
			r.Intent, r.Doing, r.Ephemeral = Stopped, "", false
			r.Failed, r.Reason = FailureOf(cause), firstLine(cause.Error())
		})
		s.happened(ctx, r, "vm.failed", firstLine(cause.Error()), map[string]string{"code": errs.CodeOf(cause), "kept": "true"})
		s.logFailures(r, undone, saved)
		return cause
	}
	undone := w.back(ctx, nothing)
	if undone != nil {
		// it stays, named, so that nothing is forgotten; the next start
		// of the daemon and `banger system gc` try again
		saved := w.save(ctx, func(r *Record) {
			r.Intent, r.Failed, r.Reason = Gone, FailureOf(undone), "not all of it could be removed"
		})
		s.logFailures(r, undone, saved)
		return cause
	}
	s.logFailures(r, s.forget(ctx, w.e))
	s.happened(ctx, r, "vm.abandoned", "not created: "+firstLine(cause.Error()), map[string]string{"code": errs.CodeOf(cause)})
	return cause
}

func (s *Service) logFailures(r Record, all ...error) {
	if err := errors.Join(all...); err != nil {
		s.log.Error("clean-up", "vm", r.ID, "name", r.Name, "err", err)
	}
}

func firstLine(s string) string {
	for i := range len(s) {
		if s[i] == '\n' {
			return s[:i]
		}
	}
	return s
}

// settle waits until the guest's init has settled.
func (s *Service) settle(ctx context.Context, e *entry, limit time.Duration, rep op.Reporter) (err error) {
	stage := rep.Stage("system", "waiting for the guest's init to settle")
	state := ""
	defer func() { stage.End(err, state) }()
	wctx, cancel := context.WithTimeoutCause(ctx, limit, errBootLimit)
	defer cancel()
	for {
		c, err := e.client(wctx)
		if err != nil {
			return s.unsettled(e, limit, err)
		}
		reply, err := c.Wait(wctx, wire.WaitRequest{For: WaitSystem})
		switch {
		case err == nil:
			state = printable(reply.State, 40)
			if len(reply.Failed) > 0 {
				failed := reply.Failed[:min(len(reply.Failed), 8)]
				for i := range failed {
					failed[i] = printable(failed[i], 60)
				}
				rep.Note("system", fmt.Sprintf("failed units: %q", failed))
			}
			return nil
		case wctx.Err() == nil && closed(c.Done()):
			continue // the link was lost: ask again on the next
		}
		return s.unsettled(e, limit, err)
	}
}

func (s *Service) unsettled(e *entry, limit time.Duration, err error) error {
	name := e.name()
	if errors.Is(err, errBootLimit) || errs.Is(err, errs.Timeout) {
		return errs.New(errs.Timeout, "system_not_settled", "the init of %q has not settled within %s; the VM runs on", name, limit).
			WithHint("banger vm exec %s -- systemctl list-jobs", name)
	}
	return err
}

// Wait waits until the guest is at "agent" or "system".
func (s *Service) Wait(ctx context.Context, ref, what string, limit time.Duration, rep op.Reporter) (View, error) {
	if err := checkWait(&what); err != nil {
		return View{}, err
	}
	e, err := s.find(ref)
	if err != nil {
		return View{}, err
	}
	if limit <= 0 {
		limit = s.limitsOf(ctx, 0).wait
	}
	wctx, cancel := context.WithTimeoutCause(ctx, limit, errBootLimit)
	defer cancel()
	if st := s.state(e); st == StateCreating || st == StateStarting {
		if err := s.locks.Wait(wctx, e.record().ID); err != nil {
			return View{}, s.unsettled(e, limit, err)
		}
	}
	if err := Legal(VerbExec, e.name(), s.state(e)); err != nil {
		return View{}, err
	}
	if _, err := e.client(wctx); err != nil {
		return View{}, err
	}
	if what == WaitSystem {
		if err := s.handover(wctx, e); err != nil {
			return View{}, err
		}
		if err := s.settle(wctx, e, limit, rep); err != nil {
			return View{}, err
		}
	}
	return s.view(e), nil
}
