package flight_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/banger-dev/banger/internal/flight"
	"github.com/banger-dev/banger/internal/op"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestManyCallersOneMaking(t *testing.T) {
	var g flight.Group[int]
	var made atomic.Int32
	release, begun := make(chan struct{}), make(chan struct{})
	fn := func(_ context.Context, r op.Reporter) (int, error) {
		made.Add(1)
		r.Note("s", "half way")
		close(begun)
		<-release
		return 7, nil
	}
	var told atomic.Int32
	var joined, wg sync.WaitGroup
	joined.Add(9)
	call := func(r op.Reporter) {
		if v, err := g.Do(t.Context(), "k", r, fn); v != 7 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
	}
	wg.Go(func() { call(nil) })
	<-begun
	for range 9 {
		wg.Go(func() { call(func(op.Event) { told.Add(1); joined.Done() }) })
	}
	joined.Wait() // each late caller was told where it stands
	close(release)
	wg.Wait()
	if made.Load() != 1 || told.Load() != 9 {
		t.Errorf("made %d times, %d told", made.Load(), told.Load())
	}
	if v, err := g.Do(t.Context(), "k", nil, func(context.Context, op.Reporter) (int, error) { return 8, nil }); v != 8 || err != nil {
		t.Errorf("a later call got %d, %v", v, err)
	}
}

func TestFirstCallerLeavesOthersStay(t *testing.T) {
	var g flight.Group[string]
	release, begun := make(chan struct{}), make(chan struct{})
	fn := func(ctx context.Context, r op.Reporter) (string, error) {
		r.Note("s", "begun")
		close(begun)
		<-release
		return "made", ctx.Err()
	}
	first, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := g.Do(first, "k", nil, fn); !errors.Is(err, context.Canceled) {
			t.Errorf("first: %v", err)
		}
	})
	<-begun
	joined := make(chan struct{})
	wg.Go(func() {
		// told where the making stands, so it has joined
		r := func(op.Event) { close(joined) }
		if v, err := g.Do(t.Context(), "k", r, fn); v != "made" || err != nil {
			t.Errorf("second: %q, %v", v, err)
		}
	})
	<-joined
	leave()
	close(release)
	wg.Wait()
}

func TestLastCallerEndsTheMaking(t *testing.T) {
	var g flight.Group[int]
	begun, ended := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	_, err := g.Do(ctx, "k", nil, func(ctx context.Context, _ op.Reporter) (int, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("Do returned before the making had ended")
	}
}
