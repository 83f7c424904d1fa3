package vm

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/banger-dev/banger/internal/paths"
)

// I12: a VM's time is counted on the monotonic clock. The stored wall time is
// looked at once, when the record is read; afterwards a jump of the wall clock
// changes nothing.
func TestATimeIsCountedOnTheMonotonicClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t.Context(), Ports{}, Options{Log: slog.New(slog.DiscardHandler), Layout: paths.Layout{State: t.TempDir(), Data: t.TempDir()}})
		defer s.Close()
		e := s.remember(Record{ID: "0123456789abcdef", Name: "web", Intent: Running, Expires: time.Now().Add(time.Hour)})
		e.setMachine(aliveMachine{})
		for _, jump := range []time.Duration{-24 * time.Hour, 365 * 24 * time.Hour} {
			// what the wall clock says now: the record's time seems past, or far off
			e.mu.Lock()
			e.rec.Expires = e.rec.Expires.Add(-jump)
			e.mu.Unlock()
			if due, next := s.due(time.Now()); len(due) != 0 || time.Until(next).Round(time.Second) != time.Hour {
				t.Errorf("after a jump of %s: %d due, next in %s", jump, len(due), time.Until(next))
			}
		}
		time.Sleep(59 * time.Minute)
		if due, _ := s.due(time.Now()); len(due) != 0 {
			t.Error("due a minute early")
		}
		time.Sleep(time.Minute)
		if due, _ := s.due(time.Now()); len(due) != 1 {
			t.Error("not due in time")
		}
		if got := monotonic(time.Time{}); !got.IsZero() {
			t.Errorf("never became %s", got)
		}
	})
}

func TestWhatDoesNotRunIsNotDue(t *testing.T) {
	s := New(t.Context(), Ports{}, Options{Log: slog.New(slog.DiscardHandler)})
	defer s.Close()
	s.remember(Record{ID: "0123456789abcdef", Name: "web", Intent: Stopped, Expires: time.Now().Add(-time.Hour)})
	if due, next := s.due(time.Now()); len(due) != 0 || !next.IsZero() {
		t.Fatalf("%d due, next %s", len(due), next)
	}
}
