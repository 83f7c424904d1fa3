package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
	"github.com/banger-dev/banger/internal/shim"
	"github.com/banger-dev/banger/internal/undo"
)

const (
	lockFile     = "lock" // held by who builds; a builder that died has let go
	prepareLimit = 60 * time.Second
	saveLimit    = 2 * time.Minute
)

// build is one making of a template that several callers may wait for. It goes
// on while at least one of them waits.
type build struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	tmpl    *Template
	err     error
}

// build makes the template of a key, once however many ask for it.
func (t *templates) build(ctx context.Context, key string, want *Template, w *work) (tmpl *Template, err error) {
	stage := w.rep.Stage("template", "booting one to clone from")
	defer func() { stage.End(err, "") }()
	t.mu.Lock()
	b := t.flight[key]
	if b == nil {
		b = &build{done: make(chan struct{})}
		t.flight[key] = b
		bctx, cancel := context.WithCancel(t.s.ctx)
		b.cancel = cancel
		maker := &work{s: t.s, e: w.e, image: w.image, kernel: w.kernel, limits: w.limits}
		r := w.rec()
		t.s.spawn(func(context.Context) {
			defer cancel()
			b.tmpl, b.err = t.make(bctx, key, want, r, maker)
			t.mu.Lock()
			delete(t.flight, key)
			t.mu.Unlock()
			close(b.done)
		})
	}
	b.waiters++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if b.waiters--; b.waiters == 0 {
			b.cancel()
		}
	}()
	select {
	case <-b.done:
		return b.tmpl, b.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// make makes a template, guarded against other daemons of the same data
// directory, in a directory of its own that gets its name last.
func (t *templates) make(ctx context.Context, key string, want *Template, r Record, w *work) (*Template, error) {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return nil, err
	}
	guard, err := fsx.Lock(ctx, filepath.Join(t.dir, key+".lock"))
	if err != nil {
		return nil, err
	}
	defer guard.Unlock()
	if tmpl, err := t.load(key); err == nil {
		return tmpl, nil // another daemon made it meanwhile
	}
	done, err := t.s.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	for try := 1; ; try++ {
		err := t.once(ctx, want, r, w)
		if err == nil {
			break
		}
		// now and then a guest loses its good clock while it boots
		if errs.CodeOf(err) != codeClock || try == clockTries {
			return nil, err
		}
	}
	t.evict(key)
	return t.load(key)
}

const (
	codeClock  = "template_clock"
	clockTries = 3
)

// once boots one machine and makes it the template.
func (t *templates) once(ctx context.Context, want *Template, r Record, w *work) (err error) {
	id := newID()
	t.mu.Lock()
	t.ids[id] = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.ids, id)
		t.mu.Unlock()
	}()
	m := &maker{t: t, id: id, dir: filepath.Join(t.dir, newMark+id), run: t.s.opt.Layout.VMRun(id), want: want, rec: r, w: w}
	start := time.Now()
	if err = m.all(ctx); err != nil {
		t.s.log.Warn("no template", "key", want.Key, "err", err, "console", lastLine(filepath.Join(m.dir, paths.ConsoleLog)))
	} else {
		t.s.log.Info("template made", "key", want.Key, "took", time.Since(start).Round(time.Millisecond))
	}
	return errors.Join(err, m.undo.Unwind(ctx))
}

// maker is one template in the making.
type maker struct {
	t        *templates
	id       string
	dir, run string
	want     *Template
	rec      Record
	w        *work
	undo     undo.Stack
	machine  hypervisor.Machine
	client   *guest.Client
	link     *network.Link
	lock     *fsx.FileLock
}

func (m *maker) all(ctx context.Context) error {
	for _, f := range []func(context.Context) error{m.files, m.start, m.ready, m.save, m.keep} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

// files makes the directories, the disks and the seed.
func (m *maker) files(ctx context.Context) error {
	s := m.t.s
	for _, dir := range []string{m.dir, m.run} {
		if err := makeDir(dir); err != nil {
			return storeErr(err)
		}
	}
	m.undo.Push("template's directories", func(context.Context) error {
		return errors.Join(removeDir(m.run), removeTemplateDir(m.dir))
	})
	lock, err := fsx.TryLock(filepath.Join(m.dir, lockFile))
	if err != nil {
		return err
	}
	m.lock = lock
	m.undo.Push("template's lock", func(context.Context) error { return lock.Unlock() })
	for file, label := range map[string]string{paths.SystemDisk: "system", paths.WorkDisk: "work"} {
		if err := s.Disks.Make(ctx, filepath.Join(m.dir, file), m.want.Disk, label); err != nil {
			return err
		}
	}
	keys := &work{s: s, e: &entry{rec: Record{ID: m.id}}, at: m.dir}
	_, token, err := keys.secrets()
	if err != nil {
		return storeErr(err)
	}
	base, err := s.Boot.Initramfs(ctx, m.w.kernel)
	if err != nil {
		return err
	}
	return s.Boot.Seeded(ctx, base, filepath.Join(m.dir, initrdFile), seed(token, m.w.kernel))
}

// start boots the machine with its RAM written through to a file. Its network
// leads nowhere: a template speaks to nobody.
func (m *maker) start(ctx context.Context) error {
	s := m.t.s
	console := filepath.Join(m.run, paths.ConsoleSock)
	ref, err := s.Shims.Start(ctx, shim.Config{
		VM: m.id, ConsoleSocket: console, ConsoleLog: filepath.Join(m.dir, paths.ConsoleLog), Control: filepath.Join(m.run, paths.ShimSock),
	}, m.dir, nil, nil)
	if err != nil {
		return err
	}
	m.undo.Push("template's shim", func(ctx context.Context) error { return s.Shims.Stop(ctx, ref) })
	spec := hypervisor.Spec{
		ID: m.id, Dir: m.dir, SockDir: m.run,
		CPUs: m.want.CPUs, Memory: m.want.Memory,
		RAM:    hypervisor.RAMFile{Path: filepath.Join(m.dir, paths.RAMFile), Shared: true},
		Kernel: m.w.kernel.VMLinux, KernelHZ: m.w.kernel.Manifest.HZ, Initrd: filepath.Join(m.dir, initrdFile), Cmdline: m.want.Cmdline,
		Disks:   diskList(m.rec.Image.Rootfs, m.dir, m.w.kernel.Modules),
		Console: hypervisor.Console{Socket: console},
	}
	if m.rec.Spec.Network != "none" {
		backend := s.Networks[m.rec.Spec.Network]
		if backend == nil {
			return errs.New(errs.Unsupported, "network_missing", "network %q is not to be had here", m.rec.Spec.Network).WithHint("banger doctor")
		}
		l, err := backend.Attach(ctx, m.id)
		if err != nil {
			return err
		}
		m.link = &l
		m.undo.Push("template's network", func(ctx context.Context) error { return backend.Detach(ctx, l) })
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("join the network: %w", err)
		}
		nic, nowhere := os.NewFile(uintptr(pair[0]), "nic"), os.NewFile(uintptr(pair[1]), "nowhere")
		defer nic.Close()
		m.undo.Push("template's network", func(context.Context) error { return nowhere.Close() })
		spec.Nets = []hypervisor.Netdev{netdev(&l, nic)}
	}
	if m.machine, err = s.Driver.Start(ctx, spec); err != nil {
		return err
	}
	m.undo.Push("template's machine", func(ctx context.Context) error {
		return errors.Join(m.machine.Kill(ctx), m.machine.Close())
	})
	return nil
}

// ready waits for the agent and has it quiet down.
func (m *maker) ready(ctx context.Context) error {
	token, err := readToken(m.dir)
	if err != nil {
		return err
	}
	dctx, cancel := context.WithTimeoutCause(ctx, m.w.limits.boot, errBootLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-m.machine.Done():
			cancel()
		case <-finished:
		}
	}()
	c, err := guest.Dial(dctx, m.machine.Ref().Endpoint, token, guest.Options{})
	if err != nil {
		last := lastLine(filepath.Join(m.dir, paths.ConsoleLog))
		if closed(m.machine.Done()) {
			return errs.New(errs.Unavailable, codeDiedBooting, "its machine ended: %s; last console line: %s", exitReason(m.machine.Exit()), last)
		}
		return errs.New(errs.Timeout, codeNoAnswer, "it did not answer within %s; last console line: %s", m.w.limits.boot, last).Because(err)
	}
	m.client = c
	m.undo.Push("template's client", func(context.Context) error { return c.Close() })
	pctx, done := context.WithTimeout(ctx, prepareLimit)
	defer done()
	reply, err := c.Prepare(pctx, m.rehearsal(pctx))
	if err != nil {
		return fmt.Errorf("prepare the guest: %w", err)
	}
	return checkClock(reply.Clock)
}

// rehearsal is what all clones get alike.
func (m *maker) rehearsal(ctx context.Context) wire.PrepareRequest {
	req := wire.PrepareRequest{Rehearse: true}
	if m.link != nil {
		req.MAC, req.Net = m.link.MAC, guestNet(m.link)
	}
	if keys, err := m.t.s.SSH.Authorized(ctx); err == nil {
		req.Authorized = keys
	}
	return req
}

// checkClock refuses a template whose guest fell back to a slow clock: all its
// clones would inherit that.
func checkClock(source string) error {
	switch source {
	case "tsc", "kvm-clock", "hosted":
		return nil
	}
	return errs.New(errs.Unavailable, codeClock, "the guest's clock is %q", printable(source, 40))
}

// save pauses the machine and writes its devices; with that its RAM file is
// the template's RAM, and the machine has done its part.
func (m *maker) save(ctx context.Context) error {
	pauser, ok := hypervisor.As[hypervisor.Pauser](m.machine)
	saver, ok2 := hypervisor.As[hypervisor.Saver](m.machine)
	if !ok || !ok2 {
		return hypervisor.ErrNoCapability
	}
	if err := m.client.Close(); err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(ctx, saveLimit)
	defer cancel()
	if err := pauser.Pause(sctx); err != nil {
		return err
	}
	if err := saver.SaveDevices(sctx, filepath.Join(m.dir, paths.Devices)); err != nil {
		return err
	}
	return m.machine.Kill(sctx)
}

// keep writes everything to disk and gives the directory its name.
func (m *maker) keep(ctx context.Context) error {
	m.want.Created = time.Now().UTC()
	b, err := json.MarshalIndent(m.want, "", "  ")
	if err != nil {
		return err
	}
	if err := errors.Join(
		fsx.WriteFile(filepath.Join(m.dir, templateFile), append(b, '\n'), 0o600),
		fsx.WriteFile(filepath.Join(m.dir, usedFile), nil, 0o600),
	); err != nil {
		return storeErr(err)
	}
	list, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	for _, f := range list {
		keep := false
		for _, n := range templateFiles {
			keep = keep || n == f.Name()
		}
		if !keep && f.Name() != lockFile {
			if err := os.Remove(filepath.Join(m.dir, f.Name())); err != nil {
				return err
			}
			continue
		}
		if err := syncFile(filepath.Join(m.dir, f.Name())); err != nil {
			return storeErr(err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Rename(m.dir, filepath.Join(m.t.dir, m.want.Key)); err != nil {
		return err
	}
	return fsx.SyncDir(m.t.dir)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// sweep removes what builders that died left behind; one that lives holds its lock.
func (t *templates) sweep(ctx context.Context) {
	list, err := os.ReadDir(t.dir)
	if err != nil {
		return
	}
	for _, d := range list {
		id, ok := strings.CutPrefix(d.Name(), newMark)
		if !ok || !d.IsDir() || !isID(id) {
			continue
		}
		dir := filepath.Join(t.dir, d.Name())
		lock, err := fsx.TryLock(filepath.Join(dir, lockFile))
		if err != nil {
			continue
		}
		err = errors.Join(t.killLeft(ctx, dir), lock.Unlock(), removeDir(t.s.opt.Layout.VMRun(id)), removeTemplateDir(dir))
		if err != nil {
			t.s.log.Warn("remove an unfinished template", "dir", dir, "err", err)
		}
	}
}

func (t *templates) killLeft(ctx context.Context, dir string) error {
	found, err := proc.Find(ctx, dir)
	if err != nil {
		return err
	}
	var all []error
	for _, f := range found {
		if f.Dir == dir && f.UID == uint32(os.Geteuid()) {
			all = append(all, proc.Kill(ctx, f.Identity))
		}
	}
	return errors.Join(all...)
}
