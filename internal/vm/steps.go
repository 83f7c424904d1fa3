package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/undo"
)

// level is how far a VM is built: what exists outlives a stop, what runs does not.
type level int

const (
	nothing level = iota
	exists
	runs
)

// step is one line of the table. up measures before it acts and names what it
// makes from the VM's id; down needs the record alone, may be repeated, and
// undoes whatever part of up was done.
type step struct {
	name  string
	level level
	up    func(context.Context, *work) error
	down  func(context.Context, *work) error
}

// table is the one list of steps. Create and start read it forwards; stop reads
// it back to exists, delete to nothing, a failure to where it began; and so
// does the daemon at its start for what it cannot adopt.
func table() []step {
	return []step{
		{"dirs", exists, upDirs, downDirs},
		{"disks", exists, upDisks, downDisks},
		{"sockets", runs, upSockets, downSockets},
		{"seed", runs, upSeed, downSeed},
		{"link", runs, upLink, downLink},
		{"shim", runs, upShim, downShim},
		{"machine", runs, upMachine, downMachine},
		{"guest", runs, upGuest, downGuest},
		{"identity", runs, upIdentity, nil},
		{"handover", runs, upHandover, nil},
	}
}

// StepNames lists the steps, for tests that fail at each.
func StepNames() []string {
	var out []string
	for _, st := range table() {
		out = append(out, st.name)
	}
	return out
}

// work is one way through the table for one VM.
type work struct {
	s   *Service
	e   *entry
	rep op.Reporter

	image    image.Image
	kernel   kernel.Kernel
	template *Template // what it is cloned from, or nil
	wait     string    // WaitAgent or WaitSystem
	limits   limits

	at string // the directory, where it is not the VM's own
	// recovering says that a record may not name all that was made.
	recovering bool

	nic    *os.File // the hypervisor's end of the network, until it has it
	client *guest.Client
}

func (w *work) rec() Record { return w.e.record() }

func (w *work) dir() string {
	if w.at != "" {
		return w.at
	}
	return w.s.opt.Layout.VMDir(w.rec().ID)
}

func (w *work) run() string { return w.s.opt.Layout.VMRun(w.rec().ID) }

func (w *work) save(ctx context.Context, change func(*Record)) error {
	return w.s.save(ctx, w.e, change)
}

// cred is the user of the VM's hypervisor, or nil for the daemon's own.
func (w *work) cred() *hypervisor.Credential {
	if uid := w.rec().UID; uid != 0 {
		return &hypervisor.Credential{UID: uid, GID: uid}
	}
	return nil
}

// forward takes the VM from one level up to another. When it fails or ctx ends
// it leaves what was done: the caller decides how far back to go.
func (w *work) forward(ctx context.Context, from, to level) error {
	for _, st := range table() {
		if st.level <= from || st.level > to {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		w.s.opt.Failpoint(st.name + ".before")
		begun := time.Now()
		err := st.up(ctx, w)
		w.s.log.Debug("step", "vm", w.rec().ID, "step", st.name, "took", time.Since(begun).Round(10*time.Microsecond), "err", err)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
				return fmt.Errorf("%s: %w", st.name, cause)
			}
			return &stepError{step: st.name, err: err}
		}
		w.s.opt.Failpoint(st.name + ".after")
	}
	return nil
}

// back takes the VM down to a level. It always tries every step; failures are
// joined. It ignores ctx's cancellation and bounds each step.
func (w *work) back(ctx context.Context, to level) error {
	w.s.opt.Failpoint("back.before")
	steps := table()
	var all []error
	for i := len(steps) - 1; i >= 0; i-- {
		st := steps[i]
		if st.level <= to || st.down == nil {
			continue
		}
		if err := undo.Run(ctx, undo.Limit, func(ctx context.Context) error { return st.down(ctx, w) }); err != nil {
			all = append(all, fmt.Errorf("undo %s: %w", st.name, err))
		}
		w.s.opt.Failpoint(st.name + ".down")
	}
	return errors.Join(all...)
}

// stepError is a failure with the step it happened in; the words are the cause's.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// failedStep is the step in which err happened, or "".
func failedStep(err error) string {
	var se *stepError
	if errors.As(err, &se) {
		return se.step
	}
	return ""
}

// unreachable says whether err is that a guest never answered: such a VM is
// kept for its log.
func unreachable(err error) bool {
	return errs.CodeOf(err) == codeNoAnswer || errs.CodeOf(err) == codeDiedBooting
}

const (
	codeNoAnswer    = "guest_no_answer"
	codeDiedBooting = "guest_died_booting"
)
