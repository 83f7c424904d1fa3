package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/errs"
)

// again is how soon after the first Ctrl-C the second one ends banger.
const again = 2 * time.Second

// stopDelay lets the command's STOP leave this process before it stops itself.
const stopDelay = 30 * time.Millisecond

// sessionFlags are what run, exec and shell have in common.
type sessionFlags struct {
	env         []string
	cwd         string
	timeout     span
	tty, noTTY  bool
	noStdin     bool
	noToolchain bool
	vars        []*bangerv1.EnvVar // of env, once checked
}

func (o *sessionFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&o.env, "env", "e", nil, "set a variable for the command: `NAME=VALUE`, or NAME for the value it has here")
	fs.StringVar(&o.cwd, "cwd", "", "run in this `DIR` of the guest (default: the workspace, else /root)")
	fs.Var(&o.timeout, "timeout", "end the command after this long, with status 124")
	fs.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal even where this is none")
	fs.BoolVarP(&o.noTTY, "no-tty", "T", false, "give the command no terminal")
	fs.BoolVarP(&o.noStdin, "no-stdin", "n", false, "give the command an empty standard input")
	fs.BoolVar(&o.noToolchain, "no-toolchain", false, "leave out the environment of the guest's mise")
	group(fs, "Command", "env", "cwd", "timeout", "tty", "no-tty", "no-stdin", "no-toolchain")
}

func (o *sessionFlags) check(a *app) error {
	switch {
	case o.tty && o.noTTY:
		return usage("-t and -T contradict each other")
	case o.tty && a.ui.JSON:
		return usage("-t and --json contradict each other: a terminal's bytes are no JSON")
	case o.tty && o.noStdin:
		return usage("-t and --no-stdin contradict each other")
	case o.cwd != "" && !strings.HasPrefix(o.cwd, "/"):
		return usage("--cwd %q is not an absolute path of the guest", o.cwd).WithHint("for example: --cwd /root")
	}
	var err error
	o.vars, err = parseEnv(o.env, a.lookup)
	return err
}

// wantsTTY decides whether the command gets a terminal.
func (o *sessionFlags) wantsTTY(a *app) bool {
	if o.noTTY || a.ui.JSON || o.noStdin {
		return false
	}
	return o.tty || (a.ui.InTTY() && a.ui.OutTTY())
}

// command is what to run where.
type command struct {
	vm      *bangerv1.VM
	argv    []string // empty: the login shell
	release bool     // an ephemeral VM goes afterwards
	hint    string   // for "no such command"
}

// runSession runs a command in a VM, joined to this process's standard files,
// and returns its status as a statusError.
func runSession(ctx context.Context, a *app, c *apiclient.Client, o *sessionFlags, cmd command) error {
	s := &session{a: a, term: &terminal{in: a.p.In, out: a.p.Out}, tty: o.wantsTTY(a),
		signals: make(chan string, 16), resize: make(chan *bangerv1.WindowSize, 1), abort: make(chan error, 1)}
	start := &bangerv1.ExecStart{
		Vm: cmd.vm.GetId(), Id: apiclient.NewExecID(), Argv: cmd.argv, Env: o.vars, Cwd: o.cwd, Shell: len(cmd.argv) == 0,
		Tty: s.tty, Stdin: !o.noStdin, Timeout: o.timeout.proto(), ReleaseVm: cmd.release, NoToolchain: o.noToolchain,
	}
	if s.tty {
		start.Size = s.term.size()
		start.Env = terminalEnv(a, start.Env)
	}
	exit, err := s.run(ctx, c, start)
	return s.verdict(exit, err, cmd)
}

// terminalEnv adds what programs on a terminal look at.
func terminalEnv(a *app, env []*bangerv1.EnvVar) []*bangerv1.EnvVar {
	given := map[string]bool{}
	for _, e := range env {
		given[e.GetName()] = true
	}
	for _, k := range []string{"TERM", "COLORTERM"} {
		if v := a.p.Getenv(k); v != "" && !given[k] {
			env = append(env, &bangerv1.EnvVar{Name: k, Value: v})
		}
	}
	return env
}

// session is one command joined to this process.
type session struct {
	a       *app
	term    *terminal
	tty     bool
	signals chan string
	resize  chan *bangerv1.WindowSize
	abort   chan error

	mu      sync.Mutex
	firstC  time.Time // of the last Ctrl-C
	stopped bool      // suspended by TSTP
}

func (s *session) run(ctx context.Context, c *apiclient.Client, start *bangerv1.ExecStart) (*bangerv1.ExecExit, error) {
	in, err := newInput(s.a.p.In)
	if err != nil {
		return nil, err
	}
	out, errOut, flush := s.outputs()
	defer flush()
	release := s.a.sig.take(s.signal, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGWINCH)
	defer release()
	if s.tty {
		if err := s.term.raw(); err != nil {
			return nil, err
		}
		defer s.term.restore()
		in.hangup = func() { s.end(syscall.SIGHUP) }
	}
	return c.Exec(ctx, start, apiclient.ExecIO{
		Stdin: in, Stdout: out, Stderr: errOut, Resize: s.resize, Signals: s.signals, Abort: s.abort,
		Lost: func(error) {
			if !s.tty {
				s.a.ui.Detail("the connection to bangerd broke; going on with the command")
			}
		},
	})
}

// outputs are where the command's output goes: as it is, or as JSON lines.
func (s *session) outputs() (stdout, stderr io.Writer, flush func()) {
	if !s.a.ui.JSON {
		return s.a.ui.Out(), s.a.ui.ErrOut(), func() {}
	}
	o, e := &jsonChunks{a: s.a, kind: "stdout"}, &jsonChunks{a: s.a, kind: "stderr"}
	return o, e, func() { o.flush(); e.flush() }
}

var signalNames = map[syscall.Signal]string{
	syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT",
	syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2",
}

// signal passes a signal of this process on to the command. It must not block.
func (s *session) signal(sig syscall.Signal) {
	switch sig {
	case syscall.SIGWINCH:
		if size := s.term.size(); size != nil && s.tty {
			select {
			case <-s.resize: // an older one nobody took
			default:
			}
			s.resize <- size
		}
	case syscall.SIGTSTP:
		s.suspend()
	case syscall.SIGCONT:
		s.resume()
	case syscall.SIGHUP:
		if s.tty { // the terminal is gone
			s.end(sig)
			return
		}
		s.send("HUP")
	case syscall.SIGINT:
		now := time.Now()
		if !s.firstC.IsZero() && now.Sub(s.firstC) < again {
			s.end(sig)
			return
		}
		s.firstC = now
		s.send("INT")
	default:
		s.send(signalNames[sig])
	}
}

func (s *session) send(name string) {
	select {
	case s.signals <- name:
	default: // sixteen unsent signals are enough
	}
}

// end ends the command and this session at once.
func (s *session) end(sig syscall.Signal) {
	select {
	case s.abort <- interrupted{sig}:
	default:
	}
}

// suspend stops the command and then this process, as Ctrl-Z does with a
// command of the host.
func (s *session) suspend() {
	wait := time.Duration(0)
	if !s.tty {
		s.send("STOP")
		wait = stopDelay
	}
	s.term.restore()
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	time.AfterFunc(wait, func() { _ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) })
}

func (s *session) resume() {
	s.mu.Lock()
	was := s.stopped
	s.stopped = false
	s.mu.Unlock()
	if !was {
		return
	}
	if !s.tty {
		s.send("CONT")
		return
	}
	_ = s.term.raw()
	s.signal(syscall.SIGWINCH)
}

// verdict turns how the command ended into what banger says and its status.
func (s *session) verdict(exit *bangerv1.ExecExit, err error, cmd command) error {
	var by interrupted
	var oe *apiclient.OutputError
	switch {
	case errors.As(err, &by):
		return statusError(128 + int(by.sig))
	case errors.As(err, &oe) && s.tty && errors.Is(err, syscall.EIO):
		// the terminal is gone, and we saw it before its signal came
		return statusError(128 + int(syscall.SIGHUP))
	case errors.As(err, &oe) && errors.Is(err, syscall.EPIPE):
		return statusError(128 + int(syscall.SIGPIPE))
	case errors.As(err, &oe):
		return errs.Wrap(err, errs.Unavailable, "output_failed", "the command was ended")
	case err != nil:
		return err
	}
	a := s.a
	if a.ui.JSON {
		if err := a.ui.JSONLine(exitLine(exit)); err != nil {
			return err
		}
	}
	if kept := exit.GetVmKept(); kept != "" {
		a.ui.Warn("%s", kept)
	}
	switch {
	case exit.GetTimedOut():
		if !a.ui.Quiet && !a.ui.JSON {
			a.ui.Error(errs.New(errs.Timeout, "command_timeout", "the command did not end within its --timeout"))
		}
		return statusError(124)
	case exit.GetFailure() == "not_found":
		a.failure(exit, 127, "command_not_found", "no such command in the VM: "+first(cmd.argv), cmd.hint)
		return statusError(127)
	case exit.GetFailure() != "":
		a.failure(exit, 126, "command_cannot_run", "cannot run "+first(cmd.argv), "")
		return statusError(126)
	case exit.GetCode() != 0:
		return statusError(min(exit.GetCode(), 255))
	}
	return nil
}

func first(argv []string) string {
	if len(argv) == 0 {
		return "the login shell"
	}
	return fmt.Sprintf("%q", argv[0])
}

// failure says why a command never ran.
func (a *app) failure(exit *bangerv1.ExecExit, status int, code, msg, hint string) {
	if a.ui.JSON {
		return // the exit line has it
	}
	kind := errs.NotFound
	if status == 126 {
		kind = errs.Invalid
	}
	if m := exit.GetMessage(); m != "" && !strings.Contains(msg, m) {
		msg += ": " + m
	}
	e := errs.New(kind, code, "%s", msg)
	if hint != "" {
		e = e.WithHint("%s", hint)
	}
	a.ui.Error(e)
}
