package vm

import (
	"slices"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// State is what a VM is now. It is computed, never stored.
type State string

// The states.
const (
	StateCreating  State = "creating"
	StateStopped   State = "stopped"
	StateStarting  State = "starting"
	StateRunning   State = "running"
	StatePaused    State = "paused"
	StateSuspended State = "suspended"
	StateStopping  State = "stopping"
	StateBroken    State = "broken"
	StateDeleting  State = "deleting"
)

// Facts are what is true of a VM now, as far as the daemon can see.
type Facts struct {
	Alive  bool   // the hypervisor process runs
	Paused bool   // its vCPUs are stopped
	Doing  string // the operation in progress, or ""
}

// StateOf computes a VM's state from its record and the facts.
func StateOf(r Record, f Facts) State {
	doing := f.Doing
	if doing == "" {
		doing = r.Doing
	}
	switch {
	case r.Intent == Gone || doing == VerbDelete:
		return StateDeleting
	case doing == VerbCreate:
		return StateCreating
	case doing == VerbStart || doing == VerbRestart:
		return StateStarting
	case doing == VerbStop || doing == VerbKill:
		return StateStopping
	case f.Alive && f.Paused:
		return StatePaused
	case f.Alive:
		return StateRunning
	case r.Failed != nil || r.Intent == Running:
		// meant to run and does not, or failed in a way worth looking at
		return StateBroken
	}
	return StateStopped
}

// The verbs that change a VM; each is the name of an operation.
const (
	VerbCreate  = "create"
	VerbStart   = "start"
	VerbStop    = "stop"
	VerbRestart = "restart"
	VerbKill    = "kill"
	VerbDelete  = "delete"
	VerbSet     = "set"
	VerbRename  = "rename"
	VerbExec    = "exec" // needs a running guest; not an operation
)

// legal says in which states a verb may begin. What is in progress is refused
// by the VM's lock before this table is asked.
var legal = map[string][]State{
	VerbStart:   {StateStopped, StateBroken},
	VerbStop:    {StateRunning, StatePaused, StateSuspended, StateStopped, StateBroken},
	VerbRestart: {StateRunning, StatePaused, StateStopped, StateBroken},
	VerbKill:    {StateRunning, StatePaused, StateSuspended, StateStopped, StateBroken},
	VerbDelete:  {StateStopped, StateBroken, StateSuspended},
	VerbSet:     {StateStopped, StateBroken, StateRunning, StatePaused, StateSuspended},
	VerbRename:  {StateStopped, StateBroken, StateRunning, StatePaused, StateSuspended},
	VerbExec:    {StateRunning},
}

// Legal says whether a verb may begin in a state, and what to do otherwise.
func Legal(verb, name string, s State) error {
	if slices.Contains(legal[verb], s) {
		return nil
	}
	e := errs.New(errs.Conflict, "vm_"+string(s), "cannot %s %q: it is %s", verb, name, s)
	switch {
	case verb == VerbDelete && (s == StateRunning || s == StatePaused):
		return e.WithHint("stop it first, or: banger vm delete --force %s", name)
	case verb == VerbExec && (s == StateStopped || s == StateBroken):
		return e.WithHint("banger vm start %s", name)
	case verb == VerbExec && s == StatePaused:
		return e.WithHint("banger vm restart %s", name)
	case verb == VerbStart && s == StateRunning:
		return e.WithHint("banger vm shell %s", name)
	case strings.HasSuffix(string(s), "ing"):
		return e.WithHint("try again when it is done: banger vm show %s", name)
	}
	return e
}
