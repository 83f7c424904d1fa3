// Package daemon is the composition root: it knows every concrete driver,
// reads the configuration, builds the rooms and the door, and runs them until
// a signal or the first failure. It holds no rule of VMs, images or networks.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/apiserver"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/config"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/event"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
	"github.com/banger-dev/banger/internal/store"
	"github.com/banger-dev/banger/internal/vm"
)

// Limits of an orderly end.
const (
	callGrace  = 10 * time.Second // for calls that undo what they were doing
	stopBudget = 20 * time.Second // for VMs, when they are to be stopped too
)

// Options are what the program is told.
type Options struct {
	Layout paths.Layout
	Getenv func(string) string
	// Program is this binary's path; its verbs shim, launch and hosted are
	// the small processes beside each VM.
	Program string
	// Foreground writes the log to standard error instead of the log file.
	Foreground bool
	// Rebuild sets the database aside and makes a new one from the VMs' own
	// records.
	Rebuild bool
	// Failpoint ends the process at a point of the step table; for tests.
	Failpoint string
}

// ErrRunning says that another daemon has the state directory.
var ErrRunning = errors.New("another bangerd has this state directory")

// Daemon is everything that runs, from Open to the end of Run.
type Daemon struct {
	opt     Options
	log     *slog.Logger
	logs    *rotated
	lock    *fsx.FileLock
	config  config.Loaded
	store   *store.Store
	events  *event.Log
	vms     *vm.Service
	chosen  *chooser
	rooms   apiserver.Rooms
	started time.Time

	stopOnce sync.Once
	stop     chan bool // whether the VMs are to be stopped too
	ended    sync.WaitGroup
}

// Open takes the state directory, reads the configuration and opens the store.
// It fails with ErrRunning when another daemon is there. ctx is the life of
// all that is built. Close what it gives.
func Open(ctx context.Context, opt Options) (*Daemon, error) {
	d := &Daemon{opt: opt, started: time.Now(), stop: make(chan bool, 1)}
	if err := d.open(ctx); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) open(ctx context.Context) (err error) {
	opt := d.opt
	uid := os.Geteuid()
	for _, dir := range []string{opt.Layout.State, opt.Layout.Runtime, opt.Layout.Data, opt.Layout.Cache} {
		if err := apiserver.PrivateDir(dir, uid); err != nil {
			return err
		}
	}
	d.lock, err = fsx.TryLock(opt.Layout.Lock())
	if errors.Is(err, fsx.ErrLocked) {
		return ErrRunning
	}
	if err != nil {
		return err
	}
	d.config, err = config.Load(opt.Layout.ConfigFile(), opt.Layout.SSHKey())
	if err != nil {
		return err
	}
	if err := d.openLog(); err != nil {
		return err
	}
	if opt.Rebuild {
		aside, err := store.Rebuild(opt.Layout.Database(), time.Now())
		if err != nil {
			return err
		}
		d.log.Warn("rebuilding the database from the VMs' own records", "damaged", aside)
	}
	if d.store, err = store.Open(ctx, opt.Layout.Database()); err != nil {
		return err
	}
	d.store.KeepEvents(d.config.Limits.Events)
	d.events = event.New(d.store, d.log)
	return d.build(ctx)
}

func (d *Daemon) openLog() error {
	out := os.Stderr
	var w interface{ Write([]byte) (int, error) } = out
	if !d.opt.Foreground {
		var err error
		if d.logs, err = openRotated(d.opt.Layout.DaemonLog(), maxLog); err != nil {
			return err
		}
		w = d.logs
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(d.config.LogLevel)); err != nil {
		return errs.Wrap(err, errs.Invalid, "config_invalid", "log_level")
	}
	d.log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	return nil
}

// Run reconciles, serves until ctx ends, a caller asks for the end, or a part
// fails, and then ends everything in order. VMs run on.
func (d *Daemon) Run(ctx context.Context) (err error) {
	defer d.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l, err := apiserver.Listen(d.opt.Layout.Socket(), os.Geteuid(), d.log)
	if err != nil {
		return err
	}
	if err := d.vms.Reconcile(ctx); err != nil {
		l.Close()
		return fmt.Errorf("reconcile: %w", err)
	}
	srv := apiserver.New(ctx, d.rooms, d.events, d.log)
	failed := make(chan error, 2)
	d.ended.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve the API: %w", err)
		}
	})
	d.ended.Go(func() { d.vms.Expire(ctx) })
	info := buildinfo.Get()
	d.log.Info("ready", "version", info.Version, "commit", info.Commit, "pid", os.Getpid(), "socket", d.opt.Layout.Socket(), "took", time.Since(d.started).Round(time.Millisecond))
	d.notify("READY=1")

	var why error
	select {
	case <-ctx.Done():
		d.log.Info("ending: asked by a signal")
	case stopVMs := <-d.stop:
		d.log.Info("ending: asked by a caller", "stop_vms", stopVMs)
		if stopVMs {
			sctx, done := context.WithTimeout(ctx, stopBudget+callGrace)
			if err := d.vms.StopAll(sctx, stopBudget); err != nil {
				d.log.Error("stop VMs", "err", err)
			}
			done()
		}
	case why = <-failed:
		d.log.Error("ending: a part failed", "err", why)
	}
	d.notify("STOPPING=1")
	cancel(errEnding)
	gctx, done := context.WithTimeout(context.WithoutCancel(ctx), callGrace)
	defer done()
	if err := srv.Shutdown(gctx); err != nil {
		d.log.Warn("calls did not end in time", "err", err)
	}
	d.vms.Close()
	d.ended.Wait()
	d.log.Info("ended; VMs run on")
	return why
}

var errEnding = errs.New(errs.Unavailable, "daemon_ending", "bangerd is ending").WithHint("try again: the next command starts it")

// close gives everything back, last taken first. It is idempotent.
func (d *Daemon) close() {
	if d.store != nil {
		d.store.Close()
		d.store = nil
	}
	if d.logs != nil {
		d.logs.Close()
		d.logs = nil
	}
	if d.lock != nil {
		d.lock.Unlock()
		d.lock = nil
	}
}

// Info says what the daemon is.
func (d *Daemon) Info(context.Context) (apiserver.Info, error) {
	running := 0
	for _, v := range d.vms.List(nil) {
		if v.State == vm.StateRunning {
			running++
		}
	}
	return apiserver.Info{
		PID: os.Getpid(), Started: d.started, StateDir: d.opt.Layout.State, DataDir: d.opt.Layout.Data,
		Config: d.opt.Layout.ConfigFile(), Log: d.opt.Layout.DaemonLog(), Running: running, Exec: d.opt.Program,
	}, nil
}

// Config is the configuration as it was read at the start.
func (d *Daemon) Config() config.Loaded { return d.config }

// Shutdown asks the daemon to end; it returns at once.
func (d *Daemon) Shutdown(stopVMs bool) {
	d.stopOnce.Do(func() { d.stop <- stopVMs })
}

// hostSize measures the host.
func hostSize() vm.HostSize {
	total, available := memory()
	return vm.HostSize{Cores: cores(), Memory: total, Available: available}
}

// bootID is the host's boot; without one nothing could be told from before.
func bootID() (string, error) { return proc.BootID() }

// agentPath finds the agent's binary: as the environment says, beside this
// program, or where the build installs it.
func agentPath(getenv func(string) string, program string) (string, error) {
	var tried []string
	if p := getenv(EnvAgent); p != "" {
		tried = append(tried, p)
	} else {
		dir := filepath.Dir(program)
		tried = append(tried,
			filepath.Join(dir, agentName),
			filepath.Join(dir, "..", "lib", "banger", agentName),
			filepath.Join(buildinfo.Prefix(), "lib", "banger", agentName))
	}
	for _, p := range tried {
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() {
			return filepath.Clean(p), nil
		}
	}
	return "", errs.New(errs.Unsupported, "agent_missing", "banger-vsock-agent is not installed: looked for %s", tried).
		WithHint("make install PREFIX=%s", buildinfo.Prefix())
}

const (
	agentName = "banger-vsock-agent"
	// EnvAgent names the agent's binary, for tests.
	EnvAgent = "BANGER_AGENT"
)
