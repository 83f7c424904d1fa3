package event_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/event"
	"github.com/banger-dev/banger/internal/store"
)

func newLog(t *testing.T) *event.Log {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return event.New(s, slog.New(slog.DiscardHandler))
}

var enough = errors.New("enough")

func TestAFollowerMissesNothingAndGetsNothingTwice(t *testing.T) {
	l := newLog(t)
	const n, writers = 60, 4
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range n {
				l.Add(ctx, event.Event{Kind: "x"})
			}
		})
	}
	// read a few, leave, come back at the cursor, again and again
	var after uint64
	for after < n*writers {
		left := 7
		err := l.Read(ctx, after, true, func(e event.Event) error {
			if e.Cursor != after+1 {
				t.Fatalf("after %d came %d", after, e.Cursor)
			}
			after = e.Cursor
			if left--; left == 0 || after == n*writers {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

func TestWithoutFollowReadingEnds(t *testing.T) {
	l := newLog(t)
	l.Add(t.Context(), event.Event{Kind: "a", Message: "m"})
	seen := 0
	if err := l.Read(t.Context(), 0, false, func(e event.Event) error {
		seen++
		if e.Kind != "a" || e.Message != "m" || e.At.IsZero() {
			t.Errorf("%+v", e)
		}
		return nil
	}); err != nil || seen != 1 {
		t.Fatal(seen, err)
	}
}

func TestAFollowerEndsWithItsCaller(t *testing.T) {
	l := newLog(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := l.Read(ctx, 0, true, func(event.Event) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
