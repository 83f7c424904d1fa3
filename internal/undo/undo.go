// Package undo is a stack of releases: take a thing, push how it is given
// back. A failure unwinds the stack, last in first out; a success keeps what
// was taken. It is not a transaction: a release that fails is reported and the
// others still run.
package undo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Limit is how long one release may take.
const Limit = 10 * time.Second

// Stack holds releases. The zero value is ready. It is for one goroutine.
type Stack struct {
	releases []release
	limit    time.Duration
}

type release struct {
	name string
	f    func(context.Context) error
}

// Push adds a release; name appears in the error when it fails.
func (s *Stack) Push(name string, f func(context.Context) error) {
	s.releases = append(s.releases, release{name, f})
}

// Keep forgets every release: what was taken stays.
func (s *Stack) Keep() { s.releases = nil }

// SetLimit changes how long one release may take.
func (s *Stack) SetLimit(d time.Duration) { s.limit = d }

// Unwind runs the releases, last in first out, and empties the stack. They run
// in a context that ignores ctx's cancellation and is bounded for each one, so
// that giving up an operation never gives up its cleaning. It returns all
// failures joined.
func (s *Stack) Unwind(ctx context.Context) error {
	limit := s.limit
	if limit <= 0 {
		limit = Limit
	}
	var errs []error
	for i := len(s.releases) - 1; i >= 0; i-- {
		r := s.releases[i]
		if err := Run(ctx, limit, r.f); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.name, err))
		}
	}
	s.releases = nil
	return errors.Join(errs...)
}

// Run runs one release detached from ctx's cancellation, within limit.
func Run(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	return f(rctx)
}
