package kernel

import (
	"context"
	"sync"

	"github.com/banger-dev/banger/internal/op"
)

// call is one fetch that several callers wait for.
type call struct {
	cancel  context.CancelFunc
	done    chan struct{}
	k       Kernel
	err     error
	waiters int // guarded by Store.mu

	mu        sync.Mutex
	last      op.Event // so that who comes later sees where it stands
	reporters map[int]op.Reporter
	next      int
}

// report passes an event on to everyone who waits.
func (c *call) report(e op.Event) {
	c.mu.Lock()
	c.last = e
	list := make([]op.Reporter, 0, len(c.reporters))
	for _, r := range c.reporters {
		list = append(list, r)
	}
	c.mu.Unlock()
	for _, r := range list {
		r(e)
	}
}

func (c *call) join(r op.Reporter) (leave func()) {
	if r == nil {
		return func() {}
	}
	c.mu.Lock()
	id := c.next
	c.next++
	c.reporters[id] = r
	last := c.last
	c.mu.Unlock()
	if last.Stage != "" {
		r(last)
	}
	return func() {
		c.mu.Lock()
		delete(c.reporters, id)
		c.mu.Unlock()
	}
}

// share joins the running fetch of a name or begins one. The fetch lives as
// long as anyone waits for it.
func (s *Store) share(ctx context.Context, name string, fresh bool, report op.Reporter) (Kernel, error) {
	s.mu.Lock()
	c := s.calls[name]
	if c == nil {
		// The work outlives the caller who happened to be first.
		work, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c = &call{cancel: cancel, done: make(chan struct{}), reporters: map[int]op.Reporter{}}
		s.calls[name] = c
		go func() {
			defer cancel()
			k, err := s.fetch(work, name, fresh, c.report)
			s.mu.Lock()
			c.k, c.err = k, err
			if s.calls[name] == c {
				delete(s.calls, name)
			}
			s.mu.Unlock()
			close(c.done)
		}()
	}
	c.waiters++
	s.mu.Unlock()
	leave := c.join(report)
	defer leave()

	select {
	case <-c.done:
		return c.k, c.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	c.waiters--
	last := c.waiters == 0
	if last {
		// Nobody may join a fetch that is being given up.
		if s.calls[name] == c {
			delete(s.calls, name)
		}
		c.cancel()
	}
	s.mu.Unlock()
	if last {
		<-c.done
	}
	return Kernel{}, context.Cause(ctx)
}
