package vm

import (
	"context"
	"fmt"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/op"
)

// Limits of the rungs of the ladder besides the guest's own.
const (
	askLimit    = 3 * time.Second  // for the agent to take the request
	buttonLimit = 10 * time.Second // for the init after the power button
)

// Stop stops a VM: the agent is asked, then the power button, then the
// process is killed. timeout bounds the guest's own stop (0: the
// configuration's); force kills at once and ends what is being done to the VM.
// It is finished even when the caller leaves. Stopping what is stopped is fine.
func (s *Service) Stop(ctx context.Context, ref string, timeout time.Duration, force bool, rep op.Reporter) (View, error) {
	e, err := s.find(ref)
	if err != nil {
		return View{}, err
	}
	verb := VerbStop
	if force {
		verb = VerbKill
	}
	err = s.finish(ctx, rep, func(ctx context.Context, rep op.Reporter) error {
		if force {
			if err := s.locks.Cancel(ctx, e.record().ID, errs.New(errs.Conflict, "vm_killed", "%q was killed meanwhile", e.name())); err != nil {
				return err
			}
		}
		octx, o, err := s.begin(ctx, e, verb)
		if err != nil {
			return err
		}
		defer o.End()
		return s.halt(octx, e, timeout, verb, rep)
	})
	if err != nil {
		return View{}, err
	}
	return s.view(e), nil
}

// Kill ends a VM at once, as pulling the plug does.
func (s *Service) Kill(ctx context.Context, ref string) (View, error) {
	return s.Stop(ctx, ref, 0, true, nil)
}

// halt takes the VM that the caller holds down to exists.
func (s *Service) halt(ctx context.Context, e *entry, timeout time.Duration, verb string, rep op.Reporter) error {
	r := e.record()
	m := e.machine()
	if m == nil && r.Intent == Stopped {
		return nil
	}
	if err := s.save(ctx, e, func(r *Record) { r.Intent, r.Doing = Stopped, verb }); err != nil {
		return err
	}
	how := "killed"
	if m != nil && verb != VerbKill {
		stage := rep.Stage("stop", "asking the guest")
		how = s.ladder(ctx, e, m, timeout, stage)
		stage.End(nil, how)
		if s.ctx.Err() != nil && !closed(m.Done()) {
			return context.Cause(s.ctx) // the next daemon goes on with it
		}
	}
	w := &work{s: s, e: e}
	if err := w.back(ctx, exists); err != nil {
		s.logFailures(r, err, w.save(ctx, func(r *Record) { r.Doing, r.Failed = "", FailureOf(err) }))
		return err
	}
	if err := w.save(ctx, func(r *Record) { r.Doing, r.Reason, r.Failed = "", how, nil }); err != nil {
		return err
	}
	s.happened(ctx, r, "vm.stopped", how, map[string]string{"how": how})
	return nil
}

// ladder asks for an orderly end, rung by rung, and says which one did it.
// When none does the caller kills.
func (s *Service) ladder(ctx context.Context, e *entry, m hypervisor.Machine, timeout time.Duration, stage *op.Stage) string {
	if timeout <= 0 {
		timeout = s.opt.StopTimeout
	}
	start := time.Now()
	if err := s.askGuest(ctx, e, timeout); err == nil {
		if waitDone(ctx, m, timeout) {
			return fmt.Sprintf("stopped by the guest in %s", time.Since(start).Round(10*time.Millisecond))
		}
	} else {
		s.log.Info("the agent was not asked to stop", "vm", e.record().ID, "err", err)
	}
	stage.Progress(1, 3, "", "pressing the power button")
	limit := min(buttonLimit, timeout)
	bctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := m.PowerButton(bctx); err == nil && waitDone(ctx, m, limit) {
		return "stopped by the power button"
	}
	stage.Progress(2, 3, "", "killing")
	return fmt.Sprintf("killed: it did not stop within %s", time.Since(start).Round(100*time.Millisecond))
}

func (s *Service) askGuest(ctx context.Context, e *entry, timeout time.Duration) error {
	actx, cancel := context.WithTimeout(ctx, min(askLimit, timeout))
	defer cancel()
	c, err := e.client(actx)
	if err != nil {
		return err
	}
	return c.Shutdown(actx, wire.ShutdownRequest{TimeoutMS: uint32(min(timeout*4/5, time.Hour).Milliseconds())})
}

func waitDone(ctx context.Context, m hypervisor.Machine, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-m.Done():
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return closed(m.Done())
}

// Restart stops a VM and boots it again. It is finished even when the caller
// leaves.
func (s *Service) Restart(ctx context.Context, ref string, timeout time.Duration, wait string, waitTimeout time.Duration, rep op.Reporter) (View, error) {
	if err := checkWait(&wait); err != nil {
		return View{}, err
	}
	e, err := s.find(ref)
	if err != nil {
		return View{}, err
	}
	lim := s.limitsOf(ctx, waitTimeout)
	err = s.finish(ctx, rep, func(ctx context.Context, rep op.Reporter) error {
		octx, o, err := s.begin(ctx, e, VerbRestart)
		if err != nil {
			return err
		}
		defer o.End()
		if err := s.halt(octx, e, timeout, VerbStop, rep); err != nil {
			return err
		}
		return s.boot(octx, e, wait, lim, rep)
	})
	if err != nil {
		return View{}, err
	}
	if wait == WaitSystem {
		if err := s.settle(ctx, e, lim.wait, rep); err != nil {
			return s.view(e), err
		}
	}
	return s.view(e), nil
}

// StopAll stops every VM that runs, in an orderly way within the budget, then
// by killing. It is for a host that goes down.
func (s *Service) StopAll(ctx context.Context, budget time.Duration) error {
	type result struct {
		name string
		err  error
	}
	entries := s.entries()
	results := make(chan result, len(entries))
	for _, e := range entries {
		go func() {
			var err error
			if e.machine() != nil {
				_, err = s.Stop(ctx, e.record().ID, budget, false, nil)
				if err != nil {
					_, err = s.Kill(ctx, e.record().ID)
				}
			}
			results <- result{e.name(), err}
		}()
	}
	var first error
	for range entries {
		if r := <-results; r.err != nil && first == nil {
			first = fmt.Errorf("stop %s: %w", r.name, r.err)
		}
	}
	return first
}

// handoverPatience is how many delays a guest that is being used is left with
// the agent alone.
const handoverPatience = 7

// handoverLater lets the guest go on to its init after a moment in which
// nobody used it, or after a few all the same: an emulated machine that boots
// an init has little left for a first command.
func (s *Service) handoverLater(e *entry) {
	m := e.machine()
	s.spawn(func(ctx context.Context) {
		t := time.NewTicker(max(s.opt.HandoverDelay, time.Millisecond))
		defer t.Stop()
		for n := 0; n < handoverPatience; n++ {
			select {
			case <-t.C:
			case <-m.Done():
				return
			case <-ctx.Done():
				return
			}
			if !e.inUse() {
				break
			}
		}
		if e.machine() != m || closed(m.Done()) || s.state(e) != StateRunning {
			return
		}
		err := s.handover(ctx, e)
		// one that is on its way out need not have got there
		if err != nil && ctx.Err() == nil && e.machine() == m && s.state(e) == StateRunning {
			s.log.Warn("handover to the image's init", "vm", e.record().ID, "err", err)
		}
	})
}

// handover lets the guest go on to its own init. It may be repeated.
func (s *Service) handover(ctx context.Context, e *entry) error {
	if e.record().GuestState != "early" {
		return nil
	}
	hctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := e.client(hctx)
	if err != nil {
		return err
	}
	if err := c.Handover(hctx); err != nil {
		return fmt.Errorf("hand %q over to its init: %w", e.name(), err)
	}
	state := "alone"
	if c.Info().HasInit {
		state = "init"
	}
	return s.save(ctx, e, func(r *Record) {
		if r.Machine != nil {
			r.GuestState = state
		}
	})
}
