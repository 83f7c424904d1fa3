package hypervisor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/proc"
)

func TestCodeBufferAndBudget(t *testing.T) {
	const mib = 1 << 20
	for memory, want := range map[int64]int64{64 * mib: 64 * mib, 256 * mib: 64 * mib, 512 * mib: 128 * mib, 513 * mib: 128 * mib, 1024 * mib: 256 * mib, 64 << 30: 256 * mib} {
		if got := hypervisor.CodeBufferFor(hypervisor.Emulation, memory); got != want {
			t.Errorf("%d MiB: code buffer of %d MiB, want %d", memory/mib, got/mib, want/mib)
		}
		if got := hypervisor.Budget(hypervisor.Emulation, memory, 0); got <= memory+want {
			t.Errorf("%d MiB: budget %d MiB leaves nothing for the hypervisor", memory/mib, got/mib)
		}
	}
	if got := hypervisor.CodeBufferFor(hypervisor.KVM, 1<<30); got != 0 {
		t.Errorf("under KVM: %d", got)
	}
	if a, b := hypervisor.Budget(hypervisor.KVM, 1<<30, 0), hypervisor.Budget(hypervisor.Emulation, 1<<30, 0); b-a != 256*mib {
		t.Errorf("budgets differ by %d MiB, want the code buffer", (b-a)/mib)
	}
}

type plain struct{ hypervisor.Machine }

type pausing struct{ hypervisor.Machine }

func (pausing) Unwrap() hypervisor.Machine { return nil }

type wrapped struct{ hypervisor.Machine }

func (w wrapped) Unwrap() hypervisor.Machine { return w.Machine }

func TestAsLooksThroughDecorators(t *testing.T) {
	if m, ok := hypervisor.As[pausing](wrapped{wrapped{pausing{}}}); !ok || m != (pausing{}) {
		t.Error("not found beneath two decorators")
	}
	if _, ok := hypervisor.As[plain](wrapped{pausing{}}); ok {
		t.Error("found what is not there")
	}
	if _, ok := hypervisor.As[plain](nil); ok {
		t.Error("found in nothing")
	}
}

// valid is a spec that every driver takes, in directories of its own.
func valid(t *testing.T) hypervisor.Spec {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Spec{
		ID: "a-1", Dir: dir, SockDir: dir, CPUs: 1, Memory: 64 << 20, Kernel: file, Initrd: file,
		Disks: []hypervisor.Disk{{ID: "image", Path: file}},
		Nets:  []hypervisor.Netdev{{ID: "net0", MAC: "02:00:00:00:00:01", File: os.Stdin}},
	}
}

func TestValidate(t *testing.T) {
	all := hypervisor.Host{Driver: "x", Caps: hypervisor.Caps{MaxCPUs: 4, Snapshot: true, UserNet: true, TAP: true, TAPByName: true}}
	none := hypervisor.Host{Driver: "x", Caps: hypervisor.Caps{MaxCPUs: 4}}
	for name, c := range map[string]struct {
		host   hypervisor.Host
		change func(*hypervisor.Spec)
		kind   errs.Kind // "" for none
	}{
		"as it is":        {all, func(*hypervisor.Spec) {}, ""},
		"most cpus":       {all, func(s *hypervisor.Spec) { s.CPUs = 4 }, ""},
		"one too many":    {all, func(s *hypervisor.Spec) { s.CPUs = 5 }, errs.Invalid},
		"id too long":     {all, func(s *hypervisor.Spec) { s.ID = strings.Repeat("a", 41) }, errs.Invalid},
		"id ends in dash": {all, func(s *hypervisor.Spec) { s.ID = "a-" }, errs.Invalid},
		"two consoles":    {all, func(s *hypervisor.Spec) { s.Console = hypervisor.Console{Socket: "/a", Log: "/b"} }, errs.Invalid},
		"multicast MAC":   {all, func(s *hypervisor.Spec) { s.Nets[0].MAC = "01:00:00:00:00:01" }, errs.Invalid},
		"odd MTU":         {all, func(s *hypervisor.Spec) { s.Nets[0].MTU = 67 }, errs.Invalid},
		"no stream":       {none, func(*hypervisor.Spec) {}, errs.Unsupported},
		"no tap":          {none, func(s *hypervisor.Spec) { s.Nets[0].TAP = "t" }, errs.Unsupported},
		"tap by name":     {all, func(s *hypervisor.Spec) { s.Nets[0].TAP, s.Nets[0].File = "t", nil }, ""},
		"no tap by name": {none, func(s *hypervisor.Spec) {
			s.Nets[0].TAP, s.Nets[0].File = "t", nil
		}, errs.Unsupported},
		"no snapshots": {none, func(s *hypervisor.Spec) {
			s.Nets, s.RAM = nil, hypervisor.RAMFile{Path: s.Dir + "/ram", Shared: true}
		}, errs.Unsupported},
		"state without RAM": {all, func(s *hypervisor.Spec) { s.Restore = &hypervisor.Restore{Devices: s.Kernel} }, errs.Invalid},
		"state needs no kernel": {all, func(s *hypervisor.Spec) {
			ram := filepath.Join(s.Dir, "ram")
			if err := errors.Join(os.WriteFile(ram, nil, 0o600), os.Truncate(ram, s.Memory)); err != nil {
				panic(err)
			}
			s.RAM.Path, s.Restore, s.Kernel, s.Initrd = ram, &hypervisor.Restore{Devices: s.Disks[0].Path}, "", ""
		}, ""},
		"kernel a pipe": {all, func(s *hypervisor.Spec) { s.Kernel = "/dev/null" }, errs.Invalid},
		"many disks": {all, func(s *hypervisor.Spec) {
			for len(s.Disks) <= hypervisor.MaxDisks {
				s.Disks = append(s.Disks, s.Disks[0])
			}
		}, errs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			spec := valid(t)
			c.change(&spec)
			err := hypervisor.Validate(spec, c.host)
			if errs.KindOf(err) != c.kind {
				t.Errorf("got %v, want kind %q", err, c.kind)
			}
		})
	}
}

func TestKillRefOfTheGone(t *testing.T) {
	self, err := proc.Self()
	if err != nil {
		t.Fatal(err)
	}
	self.Start-- // an earlier process of this pid
	if err := hypervisor.KillRef(t.Context(), hypervisor.Ref{Process: self}); err != nil {
		t.Error(err)
	}
	if errors.Is(err, hypervisor.ErrGone) {
		t.Error("gone is no failure of a kill")
	}
}
