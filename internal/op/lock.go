package op

import (
	"context"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
)

// Locks gives out one named operation at a time for each key (a VM's id). The
// loser is told who holds it. Nothing waits inside Begin and no lock is held
// across anyone's work but the operation itself.
type Locks struct {
	mu   sync.Mutex
	held map[string]*Operation
}

// Operation is work in progress on one key, from Begin to End.
type Operation struct {
	locks  *Locks
	key    string
	verb   string
	start  time.Time
	cancel context.CancelCauseFunc
	done   chan struct{}
	once   sync.Once
}

// Begin takes the key for verb. The context it returns ends with ctx, with End,
// or when Cancel is called for the key. It fails with a Busy error ("busy:
// start, since 12s") when another operation holds the key.
func (l *Locks) Begin(ctx context.Context, key, what, verb string) (context.Context, *Operation, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cur := l.held[key]; cur != nil {
		return nil, nil, errs.New(errs.Busy, "vm_busy", "cannot %s %q: busy: %s, since %s", verb, what, cur.verb, since(cur.start)).
			WithHint("try again when it is done, or end it: banger vm kill %s", what)
	}
	octx, cancel := context.WithCancelCause(ctx)
	o := &Operation{locks: l, key: key, verb: verb, start: time.Now(), cancel: cancel, done: make(chan struct{})}
	if l.held == nil {
		l.held = map[string]*Operation{}
	}
	l.held[key] = o
	return octx, o, nil
}

// End gives the key back. It is idempotent.
func (o *Operation) End() {
	o.once.Do(func() {
		o.locks.mu.Lock()
		delete(o.locks.held, o.key)
		o.locks.mu.Unlock()
		o.cancel(context.Canceled)
		close(o.done)
	})
}

// Verb is what the operation does.
func (o *Operation) Verb() string { return o.verb }

// Current gives the verb that holds the key, or "".
func (l *Locks) Current(key string) (verb string, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.held[key]; o != nil {
		return o.verb, o.start
	}
	return "", time.Time{}
}

// Cancel asks the operation that holds the key to end, with cause as the
// reason, and waits until it has, or until ctx ends. It returns at once when
// nothing holds the key.
func (l *Locks) Cancel(ctx context.Context, key string, cause error) error {
	l.mu.Lock()
	o := l.held[key]
	l.mu.Unlock()
	if o == nil {
		return nil
	}
	o.cancel(cause)
	return o.wait(ctx)
}

// Wait waits until nothing that holds the key now holds it any more.
func (l *Locks) Wait(ctx context.Context, key string) error {
	l.mu.Lock()
	o := l.held[key]
	l.mu.Unlock()
	if o == nil {
		return nil
	}
	return o.wait(ctx)
}

func (o *Operation) wait(ctx context.Context) error {
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func since(t time.Time) string {
	d := time.Since(t)
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
