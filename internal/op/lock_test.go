package op_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/op"
)

func TestTheLoserIsToldWhoHoldsTheVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l op.Locks
		_, first, err := l.Begin(t.Context(), "id", "web", "start")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(12 * time.Second)
		_, _, err = l.Begin(t.Context(), "id", "web", "stop")
		if !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), "busy: start, since 12s") {
			t.Fatalf("got %v", err)
		}
		if _, other, err := l.Begin(t.Context(), "id2", "db", "stop"); err != nil {
			t.Fatalf("another VM waits: %v", err)
		} else {
			other.End()
		}
		first.End()
		first.End()
		_, again, err := l.Begin(t.Context(), "id", "web", "stop")
		if err != nil {
			t.Fatal(err)
		}
		again.End()
	})
}

func TestCancelEndsTheWorkAndWaitsForIt(t *testing.T) {
	var l op.Locks
	ctx, o, err := l.Begin(t.Context(), "id", "web", "start")
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("deleted")
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		ended <- context.Cause(ctx)
		o.End()
	}()
	if err := l.Cancel(t.Context(), "id", why); err != nil {
		t.Fatal(err)
	}
	if got := <-ended; !errors.Is(got, why) {
		t.Fatalf("cause %v", got)
	}
	if verb, _ := l.Current("id"); verb != "" {
		t.Fatalf("still held by %s", verb)
	}
}
