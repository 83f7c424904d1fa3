package vm

import (
	"testing"

	"github.com/banger-dev/banger/internal/errs"
)

func TestStateIsComputedFromFacts(t *testing.T) {
	failed := &Failure{Kind: errs.Unavailable}
	for _, c := range []struct {
		name string
		r    Record
		f    Facts
		want State
	}{
		{"at rest", Record{Intent: Stopped}, Facts{}, StateStopped},
		{"runs", Record{Intent: Running}, Facts{Alive: true}, StateRunning},
		{"paused", Record{Intent: Running}, Facts{Alive: true, Paused: true}, StatePaused},
		{"died, not seen to yet", Record{Intent: Running}, Facts{}, StateBroken},
		{"died, seen to", Record{Intent: Stopped, Failed: failed}, Facts{}, StateBroken},
		{"being made", Record{Intent: Running, Doing: VerbCreate}, Facts{}, StateCreating},
		{"being made, machine up", Record{Intent: Running, Doing: VerbCreate}, Facts{Alive: true}, StateCreating},
		{"starting", Record{Intent: Running, Doing: VerbStart}, Facts{}, StateStarting},
		{"restarting", Record{Intent: Running}, Facts{Alive: true, Doing: VerbRestart}, StateStarting},
		{"stopping", Record{Intent: Stopped, Doing: VerbStop}, Facts{Alive: true}, StateStopping},
		{"being killed", Record{Intent: Stopped}, Facts{Doing: VerbKill}, StateStopping},
		{"deleting", Record{Intent: Gone}, Facts{Alive: true}, StateDeleting},
		{"deleting, intent not written yet", Record{Intent: Stopped}, Facts{Doing: VerbDelete}, StateDeleting},
		{"set does not change what it is", Record{Intent: Running}, Facts{Alive: true, Doing: VerbSet}, StateRunning},
		{"runs with a note of trouble", Record{Intent: Running, Failed: failed}, Facts{Alive: true}, StateRunning},
	} {
		if got := StateOf(c.r, c.f); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestAnIllegalVerbSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		verb  string
		state State
	}{
		{VerbDelete, StateRunning}, {VerbStart, StateRunning}, {VerbExec, StateStopped}, {VerbExec, StateBroken},
		{VerbExec, StateCreating}, {VerbStart, StateDeleting},
	} {
		err := Legal(c.verb, "web", c.state)
		if errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
			t.Errorf("%s in %s: %v, hint %q", c.verb, c.state, err, errs.HintOf(err))
		}
	}
	for verb, states := range legal {
		for _, s := range states {
			if err := Legal(verb, "web", s); err != nil {
				t.Errorf("%s in %s: %v", verb, s, err)
			}
		}
	}
}
