package vm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// link keeps one client to one guest: shared by all who speak to it, dialled
// again with a back-off when it is lost.
type link struct {
	name     string
	endpoint hypervisor.Endpoint
	token    func() ([]byte, error)
	cancel   context.CancelFunc
	done     chan struct{}

	mu      sync.Mutex
	client  *guest.Client
	err     error         // why there is none
	changed chan struct{} // closed and replaced when client or err changes
}

// Back-off between dials of a guest that does not answer as it should.
const (
	firstRedial = 20 * time.Millisecond
	lastRedial  = 2 * time.Second
	getLimit    = 15 * time.Second
)

// newLink starts keeping a client, beginning with first, which may be nil. It
// lives until close or the end of ctx.
func newLink(ctx context.Context, name string, endpoint hypervisor.Endpoint, token func() ([]byte, error), first *guest.Client) *link {
	ctx, cancel := context.WithCancel(ctx)
	l := &link{name: name, endpoint: endpoint, token: token, cancel: cancel, done: make(chan struct{}), client: first, changed: make(chan struct{})}
	go l.keep(ctx, first)
	return l
}

func (l *link) keep(ctx context.Context, c *guest.Client) {
	defer close(l.done)
	wait := firstRedial
	for {
		if c != nil {
			select {
			case <-c.Done():
				l.set(nil, c.Err())
			case <-ctx.Done():
				c.Close()
				l.set(nil, context.Cause(ctx))
				return
			}
		}
		var err error
		if c, err = l.dial(ctx); err == nil {
			wait = firstRedial
			l.set(c, nil)
			continue
		}
		l.set(nil, err)
		select {
		case <-time.After(wait):
			wait = min(2*wait, lastRedial)
		case <-ctx.Done():
			return
		}
	}
}

func (l *link) dial(ctx context.Context) (*guest.Client, error) {
	token, err := l.token()
	if err != nil {
		return nil, err
	}
	return guest.Dial(ctx, l.endpoint, token, guest.Options{})
}

func (l *link) set(c *guest.Client, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.client, l.err = c, err
	close(l.changed)
	l.changed = make(chan struct{})
}

// get gives the client, waiting for one until ctx ends or 15 s have passed. A
// guest that proved to be another one is told at once.
func (l *link) get(ctx context.Context) (*guest.Client, error) {
	limit := time.NewTimer(getLimit)
	defer limit.Stop()
	for {
		l.mu.Lock()
		c, err, changed := l.client, l.err, l.changed
		l.mu.Unlock()
		if c != nil && !closed(c.Done()) {
			return c, nil
		}
		if errors.Is(err, guest.ErrWrongGuest) {
			return nil, errs.New(errs.Denied, "guest_identity", "the guest that answers for %q is another one", l.name).
				WithHint("its socket was swapped: banger vm restart %s", l.name).Because(err)
		}
		select {
		case <-changed:
		case <-l.done:
			return nil, errs.New(errs.Unavailable, "guest_gone", "%q has ended", l.name).WithHint("banger vm start %s", l.name)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-limit.C:
			e := errs.New(errs.Unavailable, "guest_silent", "the guest of %q does not answer", l.name).WithHint("banger vm logs %s --console", l.name)
			if err != nil {
				e = e.Because(err)
			}
			return nil, e
		}
	}
}

// close ends the link and waits for its keeper.
func (l *link) close() {
	l.cancel()
	<-l.done
}
