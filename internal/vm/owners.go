package vm

import (
	"context"
	"sync"
	"time"
)

// owners are the commands that an ephemeral VM lives for. When the last has
// ended, or none comes in time, the VM is deleted.
type owners struct {
	mu      sync.Mutex
	ids     map[string]int // command → readers attached
	timer   *time.Timer
	stopped bool
}

// arm gives the VM d to find an owner, or to see its owner again.
func (o *owners) arm(s *Service, e *entry, d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return
	}
	if o.timer != nil {
		o.timer.Stop()
	}
	o.timer = time.AfterFunc(d, func() { o.expire(s, e) })
}

// expire deletes the VM unless an owner is attached.
func (o *owners) expire(s *Service, e *entry) {
	o.mu.Lock()
	attached := 0
	for _, n := range o.ids {
		attached += n
	}
	stopped := o.stopped
	o.mu.Unlock()
	if stopped || attached > 0 || s.ctx.Err() != nil || !e.record().Ephemeral {
		return
	}
	s.spawn(func(ctx context.Context) {
		if _, err := s.Delete(ctx, e.record().ID, true); err != nil && ctx.Err() == nil {
			s.log.Error("delete an ephemeral VM", "vm", e.record().ID, "err", err)
		}
	})
}

// attach notes a reader of an owning command.
func (o *owners) attach(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ids == nil {
		o.ids = map[string]int{}
	}
	o.ids[id]++
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
}

// detach notes that a reader left. over says that the command has ended, or
// that its reader will not come back; otherwise the VM waits for it.
func (o *owners) detach(s *Service, e *entry, id string, over bool) {
	o.mu.Lock()
	if o.ids[id] > 0 {
		o.ids[id]--
	}
	if over {
		delete(o.ids, id)
	}
	left := len(o.ids)
	o.mu.Unlock()
	switch {
	case over && left == 0:
		o.expire(s, e)
	case !over:
		o.arm(s, e, s.opt.ReattachGrace)
	}
}

// stop ends the waiting for good.
func (o *owners) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stopped = true
	if o.timer != nil {
		o.timer.Stop()
	}
}
