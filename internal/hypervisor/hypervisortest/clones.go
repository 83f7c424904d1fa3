package hypervisortest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// Clones is the sequence that templates, snapshots and forks are made of:
// template, clone, second clone, fork of a clone, fork of that fork, and a
// save of a machine with RAM of its own.
func (s Subject) Clones(t *testing.T) {
	host, err := s.New(t).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !host.Caps.Snapshot {
		t.Logf("%s cannot save states here", host.Driver)
		return
	}
	store := s.Spec(t, "store").Dir // what the daemon keeps
	tmpl := s.template(t, store)
	before := fingerprint(t, tmpl.ram)

	first, p1 := s.clone(t, "clone1", tmpl)
	p1.Expect("get", "from the template")
	if n := p1.Number("count"); n < tmpl.count {
		t.Errorf("clone counts %d, the template had %d", n, tmpl.count)
	}
	p1.Expect("sum", tmpl.sum)
	p1.Expect("set of clone1", "ok")
	p1.Expect("fill 24", "ok")
	sum1 := p1.Ask("sum")

	s.pausedClone(t, tmpl)
	_, p2 := s.clone(t, "clone2", tmpl)
	p2.Expect("get", "from the template")
	p2.Expect("sum", tmpl.sum)

	fork := s.save(t, first, store, "fork1", tmpl.ram, p1)
	f1, pf := s.clone(t, "fork1", fork)
	pf.Expect("get", "of clone1")
	pf.Expect("sum", sum1)
	if n := pf.Number("count"); n < fork.count {
		t.Errorf("the fork counts %d, its parent had %d", n, fork.count)
	}
	pf.Expect("set of fork1", "ok")
	pf.Expect("fill 5", "ok")
	sumF := pf.Ask("sum")

	// the parent goes on, untouched by what its fork does
	p1.Expect("get", "of clone1")
	p1.Expect("sum", sum1)
	if a, b := p1.Number("count"), p1.Number("count"); b < a || a < fork.count {
		t.Errorf("the parent counts %d, then %d, after %d", a, b, fork.count)
	}

	second := s.save(t, f1, store, "fork2", fork.ram, pf)
	_, pff := s.clone(t, "fork2", second)
	pff.Expect("get", "of fork1")
	pff.Expect("sum", sumF)
	p2.Expect("get", "from the template")

	if after := fingerprint(t, tmpl.ram); after != before {
		t.Errorf("the template's RAM file changed: %+v, before %+v", after, before)
	}
	s.saveOwnRAM(t, store)
}

// saved is a machine's state in files, with what the guest said before.
type saved struct {
	ram, devices string
	count        int64
	sum          string
}

func (s Subject) template(t *testing.T, store string) saved {
	t.Helper()
	spec := s.Spec(t, "template")
	out := saved{ram: filepath.Join(store, "template.ram"), devices: filepath.Join(store, "template.dev")}
	making := filepath.Join(spec.Dir, "ram")
	spec.RAM = hypervisor.RAMFile{Path: making, Shared: true}
	d := s.New(t)
	if _, err := d.Probe(t.Context()); err != nil { // not part of the time
		t.Fatal(err)
	}
	began := time.Now()
	m := Start(t, d, spec)
	port := Dial(t, m.Ref().Endpoint)
	port.Expect("ping x", "pong x")
	t.Logf("cold to the agent: %v", time.Since(began).Round(time.Millisecond))
	port.Expect("set from the template", "ok")
	port.Expect("fill 8", "ok")
	out.sum, out.count = port.Ask("sum"), port.Number("count")
	port.Close()

	saver := as[hypervisor.Saver](t, m)
	ctx := limited(t, 30*time.Second)
	if err := saver.SaveDevices(ctx, out.devices); !errs.Is(err, errs.Conflict) {
		t.Errorf("saved while it ran: %v", err)
	}
	if err := as[hypervisor.Pauser](t, m).Pause(ctx); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if err := saver.SaveDevices(ctx, out.devices); err != nil {
		t.Fatalf("save devices: %v", err)
	}
	t.Logf("devices saved in %v", time.Since(began).Round(time.Millisecond))
	if err := m.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	// the daemon takes it over
	if os.Getuid() == 0 {
		if err := os.Chown(making, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(making, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(making, out.ram); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{out.devices, out.ram} {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d KiB of %d", filepath.Base(path), st.Blocks/2, st.Size/1024)
	}
	return out
}

// clone starts a machine from a saved state and waits for its first answer.
func (s Subject) clone(t *testing.T, id string, from saved) (hypervisor.Machine, *Port) {
	t.Helper()
	return s.cloneOf(t, id, from, small)
}

func (s Subject) cloneOf(t *testing.T, id string, from saved, memory int64) (hypervisor.Machine, *Port) {
	t.Helper()
	spec := s.Spec(t, id)
	spec.Memory = memory
	spec.Kernel, spec.Initrd = "", "" // they are in the RAM file
	spec.RAM.Path = from.ram
	spec.Restore = &hypervisor.Restore{Devices: from.devices}
	d := s.New(t)
	if _, err := d.Probe(t.Context()); err != nil { // not part of the time
		t.Fatal(err)
	}
	began := time.Now()
	m := Start(t, d, spec)
	started := time.Since(began)
	port := Dial(t, m.Ref().Endpoint)
	port.Expect("ping "+id, "pong "+id)
	answered := time.Since(began)
	u, err := m.Usage()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: started in %v, agent answered after %v; %d MiB private", id,
		started.Round(time.Millisecond), answered.Round(time.Millisecond), u.Private/mib)
	return m, port
}

// pausedClone: with StartPaused a clone runs nothing until it is let on.
func (s Subject) pausedClone(t *testing.T, from saved) {
	t.Helper()
	spec := s.Spec(t, "held")
	spec.RAM.Path = from.ram
	spec.Restore = &hypervisor.Restore{Devices: from.devices}
	spec.StartPaused = true
	m := Start(t, s.New(t), spec)
	port := Dial(t, m.Ref().Endpoint)
	if got, err := port.Try(300*time.Millisecond, "ping early"); err == nil {
		t.Errorf("a clone that was to be held answered %q", got)
	}
	if err := as[hypervisor.Pauser](t, m).Resume(limited(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	port.Expect("get", "from the template")
}

// save saves a running clone apart from the file that its RAM maps, and lets
// it go on.
func (s Subject) save(t *testing.T, m hypervisor.Machine, store, name, base string, port *Port) saved {
	t.Helper()
	out := saved{ram: filepath.Join(store, name+".ram"), devices: filepath.Join(store, name+".dev")}
	out.count, out.sum = port.Number("count"), port.Ask("sum")
	if base != "" {
		copyFile(t, base, out.ram)
	}
	saver, pauser := as[hypervisor.Saver](t, m), as[hypervisor.Pauser](t, m)
	ctx := limited(t, time.Minute)
	if err := saver.SaveRAM(ctx, out.ram); !errs.Is(err, errs.Conflict) {
		t.Errorf("saved while it ran: %v", err)
	}
	began := time.Now()
	if err := pauser.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := saver.SaveDevices(ctx, out.devices); err != nil {
		t.Fatalf("save devices: %v", err)
	}
	if err := saver.SaveRAM(ctx, out.ram); err != nil {
		t.Fatalf("save RAM: %v", err)
	}
	if err := pauser.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: saved, paused for %v", name, time.Since(began).Round(time.Millisecond))
	if err := os.Chmod(out.ram, 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

// large is more memory than lies in one piece below 4 GiB of addresses.
const large = 4096 * mib

// saveOwnRAM saves and restores a large machine whose RAM maps no file.
func (s Subject) saveOwnRAM(t *testing.T, store string) {
	t.Helper()
	spec := s.Spec(t, "own")
	spec.Memory = large
	m := Start(t, s.New(t), spec)
	port := Dial(t, m.Ref().Endpoint)
	port.Expect("set of its own", "ok")
	port.Expect("fill 8", "ok")
	sum := port.Ask("sum")
	state := s.save(t, m, store, "own", "", port)
	_, p := s.cloneOf(t, "ownclone", state, large)
	p.Expect("get", "of its own")
	p.Expect("sum", sum)
}

func as[T any](t *testing.T, m hypervisor.Machine) T {
	t.Helper()
	v, ok := hypervisor.As[T](m)
	if !ok {
		t.Fatalf("%T lacks a capability that its driver claims", m)
	}
	return v
}

// copyFile copies a RAM file as the daemon does, holes kept.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
}

// print tells whether a file was written to or grew.
type print struct {
	modified     syscall.Timespec
	size, blocks int64
}

func fingerprint(t *testing.T, path string) print {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return print{st.Mtim, st.Size, st.Blocks}
}
