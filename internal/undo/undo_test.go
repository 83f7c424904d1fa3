package undo_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/banger-dev/banger/internal/undo"
)

func TestUnwindRunsLastInFirstOutAndReportsEveryFailure(t *testing.T) {
	var s undo.Stack
	var order []string
	boom := errors.New("boom")
	for _, name := range []string{"a", "b", "c"} {
		s.Push(name, func(context.Context) error {
			order = append(order, name)
			if name != "b" {
				return boom
			}
			return nil
		})
	}
	err := s.Unwind(t.Context())
	if !slices.Equal(order, []string{"c", "b", "a"}) {
		t.Fatalf("order %v", order)
	}
	if !errors.Is(err, boom) || err.Error() != "c: boom\na: boom" {
		t.Fatalf("error %q", err)
	}
	if err := s.Unwind(t.Context()); err != nil || len(order) != 3 {
		t.Fatalf("a second unwind ran releases again: %v %v", err, order)
	}
}

func TestKeepLeavesWhatWasTaken(t *testing.T) {
	var s undo.Stack
	s.Push("a", func(context.Context) error { t.Error("released"); return nil })
	s.Keep()
	if err := s.Unwind(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestUnwindIgnoresCancellationButIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s undo.Stack
		s.Push("stuck", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		ran := false
		s.Push("first", func(ctx context.Context) error { ran = true; return ctx.Err() })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		err := s.Unwind(ctx)
		if !ran || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("ran=%v err=%v", ran, err)
		}
		if got := time.Since(start); got != undo.Limit {
			t.Fatalf("took %v", got)
		}
	})
}
