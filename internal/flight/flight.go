// Package flight lets callers who want the same thing at the same time share
// one making of it: the making lives as long as anyone waits for it, and each
// of those who wait sees its progress. It keeps no results.
package flight

import (
	"context"
	"sync"

	"github.com/banger-dev/banger/internal/op"
)

// Group is a set of things in the making. Its zero value is ready.
type Group[T any] struct {
	mu    sync.Mutex // guards calls and their waiters; never held across I/O
	calls map[string]*call[T]
}

// call is one making that several callers wait for.
type call[T any] struct {
	cancel  context.CancelFunc
	done    chan struct{}
	value   T
	err     error
	waiters int

	mu        sync.Mutex // guards what follows
	last      op.Event
	reporters map[int]op.Reporter
	next      int
}

// Do joins the making of key, or begins it with fn. When ctx ends, Do returns
// at once with its cause and leaves the making to those who still wait; the
// last one to leave ends it and waits for fn to return.
func (g *Group[T]) Do(ctx context.Context, key string, r op.Reporter, fn func(context.Context, op.Reporter) (T, error)) (T, error) {
	c, leave := g.join(ctx, key, r, fn)
	defer leave()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
	}
	if g.leave(key, c) {
		<-c.done
	}
	var none T
	return none, context.Cause(ctx)
}

// join finds or begins the making of key, and counts the caller in.
func (g *Group[T]) join(ctx context.Context, key string, r op.Reporter, fn func(context.Context, op.Reporter) (T, error)) (*call[T], func()) {
	g.mu.Lock()
	if c := g.calls[key]; c != nil {
		c.waiters++
		g.mu.Unlock()
		return c, c.listen(r)
	}
	defer g.mu.Unlock()
	// the making outlives the caller who happened to be first
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &call[T]{cancel: cancel, done: make(chan struct{}), reporters: map[int]op.Reporter{}, waiters: 1}
	if g.calls == nil {
		g.calls = map[string]*call[T]{}
	}
	g.calls[key] = c
	leave := c.listen(r) // before it begins, so that it hears everything once
	go func() {
		defer cancel()
		defer close(c.done)
		c.value, c.err = fn(work, c.report)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.calls[key] == c {
			delete(g.calls, key)
		}
	}()
	return c, leave
}

// leave counts a caller out and says whether it was the last.
func (g *Group[T]) leave(key string, c *call[T]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.waiters--
	if c.waiters > 0 {
		return false
	}
	if g.calls[key] == c {
		delete(g.calls, key) // nobody may join what is being given up
	}
	c.cancel()
	return true
}

// report passes an event on to everyone who waits.
func (c *call[T]) report(e op.Event) {
	c.mu.Lock()
	c.last = e
	all := make([]op.Reporter, 0, len(c.reporters))
	for _, r := range c.reporters {
		all = append(all, r)
	}
	c.mu.Unlock()
	for _, r := range all {
		r(e)
	}
}

// listen adds a reporter, which is told at once where the making stands.
func (c *call[T]) listen(r op.Reporter) (leave func()) {
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
		defer c.mu.Unlock()
		delete(c.reporters, id)
	}
}
