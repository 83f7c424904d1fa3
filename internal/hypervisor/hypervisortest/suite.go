// Package hypervisortest is the suite that every hypervisor driver passes. It
// runs real machines with a tiny guest of its own (testdata/guest), so what it
// shows holds for the driver alone, whatever becomes of agent and images. It
// does not test speed; it prints the times it saw.
package hypervisortest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
)

// Subject is the driver under test with what it boots.
type Subject struct {
	// New makes a driver as a process of its own would: nothing is shared
	// between two.
	New func(t testing.TB) hypervisor.Driver
	// Kernel and Initrd are of guestimage; HZ is the kernel's.
	Kernel, Initrd string
	HZ             int
	// User is the hypervisor's user, nil for the test's.
	User *hypervisor.Credential
}

const (
	mib   = 1 << 20
	small = 256 * mib // a machine's memory, where it does not matter
)

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	host, err := s.New(t).Probe(t.Context())
	if err != nil {
		t.Fatalf("this host cannot run the suite: %v (hint: %s)", err, errs.HintOf(err))
	}
	t.Logf("%s %s, %s; TSC %d kHz; %s", host.Driver, host.Version, host.Accelerator, host.TSCkHz, host.WhyNotKVM)
	t.Run("Life", s.Life)
	t.Run("Adoption", s.adoption)
	t.Run("Ends", s.ends)
	t.Run("Refusals", s.refusals)
	t.Run("FailedStart", s.failedStart)
	t.Run("Clones", s.Clones)
}

// Spec is a machine of the suite in directories of its own.
func (s Subject) Spec(t testing.TB, id string) hypervisor.Spec {
	t.Helper()
	base, err := os.MkdirTemp("", "hv") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	spec := hypervisor.Spec{
		ID: id, Dir: filepath.Join(base, id), SockDir: filepath.Join(base, "s"), User: s.User,
		CPUs: 1, Memory: small, Kernel: s.Kernel, Initrd: s.Initrd, KernelHZ: s.HZ,
		Cmdline: "quiet cryptomgr.notests",
	}
	spec.Console.Log = filepath.Join(spec.Dir, paths.ConsoleLog)
	for _, d := range []string{spec.Dir, spec.SockDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return spec
}

// Start starts a machine that the test ends with.
func Start(t testing.TB, d hypervisor.Driver, spec hypervisor.Spec) hypervisor.Machine {
	t.Helper()
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("start %s: %v", spec.ID, err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(m.Ref().Console); t.Failed() && err == nil {
			t.Logf("console of %s ends with %q", spec.ID, b[max(0, len(b)-6000):])
		}
		if err := hypervisor.KillRef(context.WithoutCancel(t.Context()), m.Ref()); err != nil {
			t.Errorf("kill %s: %v", spec.ID, err)
		}
		m.Close()
	})
	return m
}

// Disk makes an empty disk file.
func Disk(t testing.TB, spec hypervisor.Spec, id string, size int64, readOnly bool) hypervisor.Disk {
	t.Helper()
	path := filepath.Join(spec.Dir, id+".raw")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("content of " + id + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Disk{ID: id, Path: path, ReadOnly: readOnly}
}

func limited(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// awaitEnd waits for a machine's end and gives it.
func awaitEnd(t testing.TB, m hypervisor.Machine, limit time.Duration) hypervisor.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(limit):
		t.Fatalf("machine %s has not ended after %v", m.Ref().ID, limit)
	}
	if proc.Alive(m.Ref().Process) {
		t.Errorf("machine %s is done, and its process lives", m.Ref().ID)
	}
	x := m.Exit()
	if x.Reason == "" || strings.ContainsAny(x.Reason, "\n\x1b") {
		t.Errorf("reason %q is not one clean line", x.Reason)
	}
	return x
}

// Life is one machine from start to power-off: what the guest sees is what was
// asked for, and every capability does what it says.
func (s Subject) Life(t *testing.T) {
	d := s.New(t)
	spec := s.Spec(t, "life")
	host, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// two, but not where an emulated guest of two may crash or stop
	// (docs/decisions/0015-one-emulated-cpu.md)
	spec.CPUs, spec.Memory = min(2, host.Caps.SafeCPUs), 512*mib
	spec.Disks = []hypervisor.Disk{
		Disk(t, spec, "image", 8*mib, true), Disk(t, spec, "system", 16*mib, false), Disk(t, spec, "work", 32*mib, false),
	}
	nets := stubNets(t)
	spec.Nets = []hypervisor.Netdev{{ID: "net0", MAC: "02:00:5e:10:20:30", MTU: 1400, File: nets.machine}}
	spec.Console.Log = ""
	spec.Console.Socket = filepath.Join(spec.SockDir, paths.ConsoleSock)
	spec.Cmdline += " banger.test=a,b=c"
	const consoleCap = 64 << 10
	con := newConsole(t, spec.Console.Socket, consoleCap)

	began := time.Now()
	m := Start(t, d, spec)
	started := time.Since(began)
	nets.machine.Close()
	port := Dial(t, m.Ref().Endpoint)
	port.Expect("ping hello", "pong hello")
	t.Logf("started in %v, agent answered after %v", started.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

	port.Expect("cpus", strconv.Itoa(spec.CPUs))
	if kib := port.Number("memory"); kib < 512*1024*8/10 || kib > 512*1024 {
		t.Errorf("the guest has %d KiB of memory, want about 512 MiB", kib)
	}
	port.Expect("disks", "vda:image:1:16384 vdb:system:0:32768 vdc:work:0:65536")
	port.Expect("nics", "02:00:5e:10:20:30/1400")
	port.Expect("read vda", "content of image")
	port.Expect("write vdb written by the guest", "ok")
	if got := port.Ask("write vda x"); !strings.HasPrefix(got, "error:") {
		t.Errorf("the guest wrote on a read-only disk: %s", got)
	}
	if got := port.Ask("cmdline"); !strings.Contains(got, " banger.test=a,b=c") {
		t.Errorf("command line %q", got)
	}
	if b, err := os.ReadFile(spec.Disks[1].Path); err != nil || !strings.HasPrefix(string(b), "written by the guest\n") {
		t.Errorf("the disk's file begins with %.30q, %v", b, err)
	}

	s.pause(t, m, port)
	s.grow(t, m, port, spec.Disks[2])
	s.usage(t, m, spec)
	s.files(t, m, spec)
	port.Expect("console 128", "ok")

	if err := m.PowerButton(limited(t, 10*time.Second)); err != nil && !errors.Is(err, hypervisor.ErrNoCapability) {
		t.Errorf("power button: %v", err)
	}
	port.Try(time.Second, "poweroff") //nolint:errcheck // the answer may not come
	if x := awaitEnd(t, m, time.Minute); x.Cause != hypervisor.CausePowerOff || !x.Known || x.Code != 0 {
		t.Errorf("exit %+v, want a power-off", x)
	}
	kept, total := con.text(limited(t, 10*time.Second), t)
	if len(kept) != consoleCap || total < 128<<10 || !strings.Contains(kept, "guest: ready") {
		t.Errorf("kept %d bytes of the %d that the console wrote, want %d with the boot's", len(kept), total, consoleCap)
	}
}

func (s Subject) pause(t *testing.T, m hypervisor.Machine, port *Port) {
	p, ok := hypervisor.As[hypervisor.Pauser](m)
	if !ok {
		return
	}
	ctx := limited(t, 30*time.Second)
	for range 2 { // idempotent
		if err := p.Pause(ctx); err != nil {
			t.Fatalf("pause: %v", err)
		}
	}
	if got, err := port.Try(300*time.Millisecond, "ping paused"); err == nil {
		t.Errorf("a paused guest answered %q", got)
	}
	for range 2 {
		if err := p.Resume(ctx); err != nil {
			t.Fatalf("resume: %v", err)
		}
	}
	port.Expect("ping resumed", "pong resumed")
}

func (s Subject) grow(t *testing.T, m hypervisor.Machine, port *Port, d hypervisor.Disk) {
	g, ok := hypervisor.As[hypervisor.DiskGrower](m)
	if !ok {
		return
	}
	if err := os.Truncate(d.Path, 64*mib); err != nil {
		t.Fatal(err)
	}
	if err := g.GrowDisk(limited(t, 30*time.Second), d.ID, 64*mib); err != nil {
		t.Fatalf("grow: %v", err)
	}
	for end := time.Now().Add(answerLimit); port.Ask("size vdc") != "131072"; {
		if time.Now().After(end) {
			t.Fatalf("the guest sees %s sectors, want 131072", port.Ask("size vdc"))
		}
	}
	if err := g.GrowDisk(limited(t, 30*time.Second), "nosuch", 64*mib); err == nil {
		t.Error("a disk that is not there was grown")
	}
}

func (s Subject) usage(t *testing.T, m hypervisor.Machine, spec hypervisor.Spec) {
	u, err := m.Usage()
	if err != nil {
		t.Fatalf("usage: %v", err)
	}
	t.Logf("usage: cpu %v, %d MiB resident, %d MiB private, code buffer %d MiB", u.CPU, u.RSS/mib, u.Private/mib, u.CodeBuffer/mib)
	if u.CPU <= 0 || u.Private < 16*mib || u.RSS < u.Private || u.Private > hypervisor.Budget(hypervisor.Emulation, spec.Memory, u.CodeBuffer) {
		t.Errorf("usage %+v is not credible", u)
	}
}

// files checks that nothing the machine made can be touched by other users,
// and that its process is found by its marker.
func (s Subject) files(t *testing.T, m hypervisor.Machine, spec hypervisor.Spec) {
	for _, dir := range []string{spec.Dir, spec.SockDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			fi, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			if fi.Mode().Perm()&0o077 != 0 && e.Name() != paths.ConsoleSock {
				t.Errorf("%s has mode %v", e.Name(), fi.Mode())
			}
		}
	}
	found, err := proc.Find(t.Context(), spec.Dir)
	if err != nil || len(found) != 1 || found[0].Identity != m.Ref().Process || found[0].VM != spec.ID {
		t.Errorf("found by marker: %+v, %v", found, err)
	}
	uid := uint32(os.Getuid())
	if spec.User != nil {
		uid = spec.User.UID
	}
	if len(found) == 1 && found[0].UID != uid {
		t.Errorf("the hypervisor runs as user %d, want %d", found[0].UID, uid)
	}
}

// adoption: another driver finds the machine by its Ref alone, while the first
// has let go of it, and sees its end.
func (s Subject) adoption(t *testing.T) {
	spec := s.Spec(t, "adopted")
	m := Start(t, s.New(t), spec)
	port := Dial(t, m.Ref().Endpoint)
	port.Expect("set remembered", "ok")
	count := port.Number("count")
	port.Close()

	other := s.New(t)
	if _, err := other.Start(t.Context(), spec); errs.CodeOf(err) != "machine_running" {
		t.Errorf("started twice: %v", err)
	}
	if _, err := other.Adopt(limited(t, 300*time.Millisecond), m.Ref()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("adopted while another has it: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if !proc.Alive(m.Ref().Process) {
		t.Fatal("closing the handle ended the machine")
	}
	a, err := other.Adopt(limited(t, 30*time.Second), m.Ref())
	if err != nil {
		t.Fatalf("adopt: %v", err)
	}
	defer a.Close()
	if a.Ref() != m.Ref() {
		t.Errorf("adopted %+v, want %+v", a.Ref(), m.Ref())
	}
	port = Dial(t, a.Ref().Endpoint)
	port.Expect("get", "remembered")
	if n := port.Number("count"); n < count {
		t.Errorf("the guest counted from %d to %d", count, n)
	}
	if err := a.Kill(limited(t, 10*time.Second)); err != nil {
		t.Fatalf("kill: %v", err)
	}
	if x := awaitEnd(t, a, time.Second); x.Cause != hypervisor.CauseHost {
		t.Errorf("exit %+v, want one from outside", x)
	}
	if err := a.Kill(limited(t, time.Second)); err != nil {
		t.Errorf("second kill: %v", err)
	}
	if _, err := other.Adopt(t.Context(), m.Ref()); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("adopted a dead machine: %v", err)
	}
	stale := m.Ref()
	stale.Process, err = proc.Self() // the record's pid is now another's
	if err != nil {
		t.Fatal(err)
	}
	stale.Process.Start--
	if _, err := other.Adopt(t.Context(), stale); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("adopted a stranger: %v", err)
	}
}

// listing names all that lies in a machine's directories.
func listing(t testing.TB, spec hypervisor.Spec) string {
	t.Helper()
	var names []string
	for _, dir := range []string{spec.Dir, spec.SockDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return fmt.Sprint(names)
}
