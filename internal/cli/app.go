// Package cli is banger's command line: it parses, calls the daemon's API and
// shows what comes back. Every command is a constructor, an options struct and
// a run function. It holds no logic that the API lacks, writes only through
// cli/ui, and never ends the process itself.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/paths"
)

// Process is what the command line has of the process it runs in.
type Process struct {
	Args           []string // without the program's name
	In, Out, Err   *os.File
	Getenv         func(string) string
	Dir            string // working directory, absolute
	Self           string // path of the running program
	UID            int
	ConnectOptions func(*apiclient.Options) // for tests; may be nil
}

// app is what the commands share.
type app struct {
	p     Process
	ui    *ui.UI
	sig   *signals
	verbs map[*cobra.Command]verb
	debug bool

	mu     sync.Mutex
	client *apiclient.Client
}

// Main runs one command line and returns the exit status.
func Main(ctx context.Context, p Process) int {
	a := &app{p: p, ui: ui.New(ui.ForFiles(p.In, p.Out, p.Err, p.Getenv)), verbs: map[*cobra.Command]verb{}}
	ctx, a.sig = watchSignals(ctx)
	defer a.sig.stop()
	root := newRoot(a)
	root.SetArgs(p.Args)
	cmd, err := root.ExecuteContextC(ctx)
	defer a.close()
	return a.finish(ctx, cmd, err)
}

// finish shows the error, if any, and gives the exit status.
func (a *app) finish(ctx context.Context, cmd *cobra.Command, err error) int {
	passes := cmd != nil && a.verbs[cmd].passes
	var st statusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &st):
		return int(st)
	case isPipe(err):
		return 128 + int(syscall.SIGPIPE)
	}
	var by interrupted
	if errors.As(context.Cause(ctx), &by) && errs.Is(err, errs.Cancelled) {
		var e *errs.Error
		if errors.As(err, &e) && e.Hint != "" {
			a.ui.Error(err)
		} else if !a.ui.Quiet {
			a.ui.Error(errs.New(errs.Cancelled, "interrupted", "interrupted"))
		}
		return 128 + int(by.sig)
	}
	a.ui.Error(err)
	if passes && !errs.Is(err, errs.Cancelled) {
		return 125
	}
	return errs.KindOf(err).ExitStatus()
}

func isPipe(err error) bool {
	var oe *apiclient.OutputError
	var pe *os.PathError
	return errors.Is(err, syscall.EPIPE) && (errors.As(err, &oe) || errors.As(err, &pe))
}

// statusError ends the process with a status and says nothing: all was said.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// lookup gives a variable of this process, if it is set and not empty.
func (a *app) lookup(name string) (string, bool) {
	v := a.p.Getenv(name)
	return v, v != ""
}

// layout is where this user's daemon keeps things.
func (a *app) layout() (paths.Layout, error) {
	l, err := paths.FromEnv(a.p.UID, a.p.Getenv)
	if err != nil {
		return l, errs.Wrap(err, errs.Invalid, "no_home", "cannot tell where banger's files are")
	}
	return l, nil
}

// dial gives the client of this user's daemon, started where it does not run.
func (a *app) dial(ctx context.Context) (*apiclient.Client, error) {
	c, err := a.newClient(true)
	if err != nil {
		return nil, err
	}
	_, err = c.Connect(ctx)
	return c, err
}

// dialRunning is dial for verbs that do not start a daemon.
func (a *app) dialRunning(ctx context.Context) (*apiclient.Client, error) {
	c, err := a.newClient(false)
	if err != nil {
		return nil, err
	}
	_, err = c.Connect(ctx)
	return c, err
}

func (a *app) newClient(start bool) (*apiclient.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		return a.client, nil
	}
	l, err := a.layout()
	if err != nil {
		return nil, err
	}
	o := apiclient.Options{Socket: l.Socket(), Log: l.DaemonLog()}
	if start {
		find := func() (string, error) { return apiclient.FindDaemon(a.p.Self, buildinfo.Prefix()) }
		o.Start = apiclient.StartDaemon(find, l.DaemonLog())
	}
	if a.debug {
		began := time.Now()
		o.Trace = func(s string) { a.ui.Note("debug: %6s %s", time.Since(began).Round(time.Millisecond), s) }
	}
	if a.p.ConnectOptions != nil {
		a.p.ConnectOptions(&o)
	}
	a.client = apiclient.New(o)
	return a.client, nil
}

func (a *app) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		a.client.Close()
	}
}

// detached is ctx for clean-up: not cancelled with ctx, but bounded.
func detached(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}
