// Package event is the log of everything that happened: numbered, kept in the
// store, read from any cursor on without loss or repeat. It is not a queue:
// nobody is waited for, and a reader that is slow reads later.
package event

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Event is one thing that happened.
type Event struct {
	Cursor  uint64 // rises by one with each event; 0 until stored
	At      time.Time
	Kind    string // "vm.created", "vm.started", "vm.exited", ...
	VM      string // id, or ""
	Name    string
	Message string
	Data    map[string]string
}

// Store keeps events in order.
type Store interface {
	// AppendEvent stores e and returns its cursor, higher than any before.
	AppendEvent(ctx context.Context, e Event) (uint64, error)
	// EventsAfter gives up to limit events with a cursor above after, in order.
	EventsAfter(ctx context.Context, after uint64, limit int) ([]Event, error)
	// LastEvent is the highest cursor ever given, 0 for none.
	LastEvent(ctx context.Context) (uint64, error)
}

// Log appends events and wakes those who follow.
type Log struct {
	store Store
	log   *slog.Logger
	mu    sync.Mutex
	wake  chan struct{} // closed and replaced with each event
}

// New makes a log over a store.
func New(store Store, log *slog.Logger) *Log {
	return &Log{store: store, log: log, wake: make(chan struct{})}
}

// Add appends an event, now. A store that fails is logged: what happened has
// happened and is not undone because it could not be written down.
func (l *Log) Add(ctx context.Context, e Event) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if _, err := l.store.AppendEvent(context.WithoutCancel(ctx), e); err != nil {
		l.log.Error("event not stored", "kind", e.Kind, "vm", e.VM, "err", err)
		return
	}
	l.mu.Lock()
	close(l.wake)
	l.wake = make(chan struct{})
	l.mu.Unlock()
}

// Last is the cursor of the newest event.
func (l *Log) Last(ctx context.Context) (uint64, error) { return l.store.LastEvent(ctx) }

const page = 256

// Read calls f for every event after the cursor, in order. With follow it goes
// on until ctx ends; otherwise it returns at the newest. f's error ends it.
func (l *Log) Read(ctx context.Context, after uint64, follow bool, f func(Event) error) error {
	for {
		l.mu.Lock()
		wake := l.wake
		l.mu.Unlock()
		for {
			events, err := l.store.EventsAfter(ctx, after, page)
			if err != nil {
				return err
			}
			for _, e := range events {
				if err := f(e); err != nil {
					return err
				}
				after = e.Cursor
			}
			if len(events) < page {
				break
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
