package vm

import (
	"context"
	"time"

	"github.com/banger-dev/banger/internal/errs"
)

// deadlineChanged wakes Expire.
func (s *Service) deadlineChanged() {
	select {
	case s.wakeTimer <- struct{}{}:
	default:
	}
}

// Expire stops VMs when their time has come, until ctx ends. While the daemon
// runs the time is the monotonic clock's; over a restart it is the wall clock's.
// What has expired is stopped, not deleted: its disks may hold work. Prune
// deletes it.
func (s *Service) Expire(ctx context.Context) {
	for {
		due, next := s.due(time.Now())
		for _, e := range due {
			s.expireOne(ctx, e)
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-timer:
		case <-s.wakeTimer:
		case <-ctx.Done():
			return
		}
	}
}

// due gives the VMs whose time has come and when the next one's does.
func (s *Service) due(now time.Time) (due []*entry, next time.Time) {
	for _, e := range s.entries() {
		e.mu.Lock()
		at := e.expires
		running := e.mach != nil
		e.mu.Unlock()
		switch {
		case at.IsZero() || !running:
		case !at.After(now):
			due = append(due, e)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	return due, next
}

func (s *Service) expireOne(ctx context.Context, e *entry) {
	r := e.record()
	s.happened(ctx, r, "vm.expired", "its time is up", nil)
	e.mu.Lock()
	e.expires = time.Time{} // once
	e.mu.Unlock()
	s.spawn(func(ctx context.Context) {
		var err error
		for {
			if r.Ephemeral {
				_, err = s.Delete(ctx, r.ID, true)
			} else {
				_, err = s.Stop(ctx, r.ID, 0, false, nil)
			}
			if !errs.Is(err, errs.Busy) {
				break
			}
			if err = s.locks.Wait(ctx, r.ID); err != nil {
				break
			}
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("stop an expired VM", "vm", r.ID, "err", err)
			return
		}
		if !r.Ephemeral {
			s.logFailures(r, s.save(ctx, e, func(r *Record) { r.Reason = "expired" }))
		}
	})
}
