package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	gvisorlog "gvisor.dev/gvisor/pkg/log"

	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/network/userspace"
	"github.com/banger-dev/banger/internal/paths"
)

const (
	nicFD     = 3
	readyLine = "ready\n"
	maxConfig = 64 << 10

	// logCap bounds the shim's own log, as ConsoleCap does the console's.
	logCap = 1 << 20
	// memoryGoal is what the collector aims at; it is no wall, the limits
	// of the network stack are.
	memoryGoal = 192 << 20
	// firstPeer is how long a shim without a network waits for a
	// hypervisor that may never come.
	firstPeer = 5 * time.Minute

	noFollow = unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// Main is the process: `bangerd shim`. It returns the exit status. Whoever
// started it reads one line on standard output, "ready" or what went wrong.
func Main() int {
	if err := run(); err != nil {
		// To the starter while it listens; to the log's file ever after.
		fmt.Fprintf(os.Stdout, "error: %v\n", err)
		fmt.Fprintf(os.Stderr, "shim: %v\n", err)
		return 1
	}
	return 0
}

func run() error {
	unix.Umask(0o177)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	debug.SetMemoryLimit(memoryGoal)

	cfg, err := readConfig(os.Stdin)
	if err != nil {
		return err
	}
	p := &process{cfg: cfg, started: time.Now().UTC(), uid: os.Getuid(), cancel: cancel}
	if err := p.open(); err != nil {
		return err
	}
	defer p.close()
	gvisorlog.SetTarget(gvisorlog.GoogleEmitter{Writer: &gvisorlog.Writer{Next: p.log}})
	gvisorlog.SetLevel(gvisorlog.Warning)
	if p.confined, err = confine(cfg.User, cfg.ConsoleCap); err != nil {
		return err
	}
	if err := p.startNet(ctx); err != nil {
		return err
	}
	if err := sayReady(); err != nil {
		return err
	}
	return p.serve(ctx)
}

func readConfig(r io.Reader) (Config, error) {
	var c Config
	d := json.NewDecoder(io.LimitReader(r, maxConfig))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	if c.ConsoleCap == 0 {
		c.ConsoleCap = DefaultConsoleCap
	}
	for name, p := range map[string]string{"dir": c.Dir, "console_socket": c.ConsoleSocket, "console_log": c.ConsoleLog, "control": c.Control} {
		if !filepath.IsAbs(p) {
			return Config{}, fmt.Errorf("config: %s is %q, want an absolute path", name, p)
		}
	}
	if c.VM == "" || c.ConsoleCap < 64<<10 {
		return Config{}, fmt.Errorf("config: vm %q, console_cap %d", c.VM, c.ConsoleCap)
	}
	return c, nil
}

// sayReady ends the talk with the starter: its end of the pipe may go any time.
func sayReady() error {
	if _, err := io.WriteString(os.Stdout, readyLine); err != nil {
		return fmt.Errorf("say ready: %w", err)
	}
	return os.Stdout.Close()
}

// process is what the shim holds.
type process struct {
	cfg      Config
	started  time.Time
	uid      int // of who started it
	cancel   context.CancelFunc
	confined []string

	log     *capLog
	consLog *capLog
	console *console
	control *control
	nic     net.Conn
	stack   *userspace.Stack

	mu    sync.Mutex
	netUp bool
}

// open takes everything that needs the starter's rights.
func (p *process) open() (err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.log, err = openCapLog(filepath.Join(p.cfg.Dir, paths.ShimLog), logCap); err != nil {
		return err
	}
	if err = stderrTo(p.log.Path()); err != nil {
		return err
	}
	if p.consLog, err = openCapLog(p.cfg.ConsoleLog, p.cfg.ConsoleCap); err != nil {
		return err
	}
	cons, err := listen(p.cfg.ConsoleSocket)
	if err != nil {
		return err
	}
	p.console = newConsole(cons, p.consLog)
	if u := p.cfg.User; u != nil {
		if err := os.Chown(p.cfg.ConsoleSocket, int(u.UID), int(u.GID)); err != nil {
			return err
		}
	}
	ctl, err := listen(p.cfg.Control)
	if err != nil {
		return err
	}
	p.control = &control{ln: ctl, uid: p.uid, report: p.report, stop: p.cancel}
	if p.cfg.Net == nil || p.cfg.Net.Stack == nil {
		return nil
	}
	f := os.NewFile(nicFD, "nic")
	if f == nil {
		return errors.New("no NIC was passed")
	}
	defer f.Close() // FileConn has its own copy
	if p.nic, err = net.FileConn(f); err != nil {
		return fmt.Errorf("take the NIC: %w", err)
	}
	return nil
}

// stderrTo leads what the runtime says when it dies to the end of a file.
func stderrTo(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|noFollow, 0)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	return unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0)
}

func (p *process) startNet(ctx context.Context) error {
	if p.nic == nil {
		return nil
	}
	var err error
	p.stack, err = userspace.Start(ctx, p.nic, userspace.Options{
		Policy: userspace.Policy{LAN: p.cfg.Net.Stack.LAN == network.LANAllow},
		Log:    slog.New(slog.NewTextHandler(p.log, nil)),
	})
	p.netUp = err == nil
	return err
}

// serve runs until told to stop or until every peer is gone: the NIC's wire
// and, once it was there, the console's.
func (p *process) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errc := make(chan error, 3)
	wg.Go(func() { errc <- p.console.serve(ctx) })
	wg.Go(func() { errc <- p.control.serve(ctx) })
	netGone := make(chan struct{})
	wg.Go(func() {
		defer close(netGone)
		if p.stack == nil {
			return
		}
		if err := p.stack.Run(); err != nil {
			// The VM lives on without a network, and the log says so.
			fmt.Fprintf(p.log, "network ended: %v\n", err)
		}
		p.mu.Lock()
		p.netUp = false
		p.mu.Unlock()
	})
	// What stop asked for or a signal ended is no failure.
	var err error
	peers := p.peersGone(ctx, netGone)
	select {
	case <-peers:
	case <-ctx.Done():
	case err = <-errc:
	}
	cancel()
	wg.Wait()
	<-peers
	return err
}

// peersGone gives a channel that is closed when no peer is left, or ctx ends.
func (p *process) peersGone(ctx context.Context, netGone <-chan struct{}) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-netGone:
		case <-ctx.Done():
			return
		}
		wait := time.NewTimer(firstPeer)
		defer wait.Stop()
		if p.stack != nil {
			// The wire's end is news of the hypervisor's: a console
			// that was never taken will not be.
			select {
			case <-p.console.first:
			default:
				return
			}
		}
		select {
		case <-p.console.first:
		case <-wait.C:
			return
		case <-ctx.Done():
			return
		}
		select {
		case <-p.console.gone:
		case <-ctx.Done():
		}
	}()
	return gone
}

func (p *process) report() Report {
	r := Report{VM: p.cfg.VM, Started: p.started, Console: p.console.report(), Confined: p.confined}
	if p.stack != nil {
		p.mu.Lock()
		up := p.netUp
		p.mu.Unlock()
		r.Net = &NetReport{Up: up, Counters: p.stack.Counters(), Refusals: p.stack.Refusals()}
	}
	return r
}

func (p *process) close() {
	var closers []io.Closer
	if p.console != nil {
		closers = append(closers, p.console.ln)
	}
	if p.control != nil {
		closers = append(closers, p.control.ln)
	}
	if p.log != nil {
		closers = append(closers, p.log)
	}
	if p.consLog != nil {
		closers = append(closers, p.consLog)
	}
	for _, c := range closers {
		_ = c.Close() // the process ends
	}
}
