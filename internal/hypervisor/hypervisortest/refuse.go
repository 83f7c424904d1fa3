package hypervisortest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
)

// stub is a socketpair in place of a network.
type stub struct{ machine, host *os.File }

func stubNets(t testing.TB) stub {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := stub{os.NewFile(uintptr(fds[0]), "machine"), os.NewFile(uintptr(fds[1]), "host")}
	t.Cleanup(func() { s.machine.Close(); s.host.Close() })
	return s
}

// refusals: a spec that is not right is refused before anything is made.
func (s Subject) refusals(t *testing.T) {
	d := s.New(t)
	spec := s.Spec(t, "refused")
	spec.Console.Log = ""
	for name, c := range map[string]struct {
		kind   errs.Kind
		change func(*hypervisor.Spec)
	}{
		"no id":            {errs.Invalid, func(s *hypervisor.Spec) { s.ID = "" }},
		"bad id":           {errs.Invalid, func(s *hypervisor.Spec) { s.ID = "a,b" }},
		"no cpus":          {errs.Invalid, func(s *hypervisor.Spec) { s.CPUs = 0 }},
		"too many cpus":    {errs.Invalid, func(s *hypervisor.Spec) { s.CPUs = 4096 }},
		"no memory":        {errs.Invalid, func(s *hypervisor.Spec) { s.Memory = 0 }},
		"half a MiB":       {errs.Invalid, func(s *hypervisor.Spec) { s.Memory += 1 << 19 }},
		"no kernel":        {errs.NotFound, func(s *hypervisor.Spec) { s.Kernel = "/nowhere/vmlinux" }},
		"relative kernel":  {errs.Invalid, func(s *hypervisor.Spec) { s.Kernel = "vmlinux" }},
		"no initramfs":     {errs.NotFound, func(s *hypervisor.Spec) { s.Initrd = "/nowhere/initrd" }},
		"long cmdline":     {errs.Invalid, func(s *hypervisor.Spec) { s.Cmdline = strings.Repeat("x", 4096) }},
		"cmdline of two":   {errs.Invalid, func(s *hypervisor.Spec) { s.Cmdline = "a\nb" }},
		"no disk":          {errs.NotFound, func(s *hypervisor.Spec) { s.Disks = []hypervisor.Disk{{ID: "a", Path: "/nowhere/disk"}} }},
		"disk a directory": {errs.Invalid, func(s *hypervisor.Spec) { s.Disks = []hypervisor.Disk{{ID: "a", Path: s.Dir}} }},
		"bad disk id":      {errs.Invalid, func(s *hypervisor.Spec) { s.Disks = []hypervisor.Disk{{ID: "a,b", Path: s.Kernel}} }},
		"disk id twice": {errs.Invalid, func(s *hypervisor.Spec) {
			s.Disks = []hypervisor.Disk{{ID: "a", Path: s.Kernel, ReadOnly: true}, {ID: "a", Path: s.Kernel, ReadOnly: true}}
		}},
		"bad mac":           {errs.Invalid, func(s *hypervisor.Spec) { s.Nets = []hypervisor.Netdev{{ID: "n", MAC: "02:00", File: os.Stdin}} }},
		"net without file":  {errs.Invalid, func(s *hypervisor.Spec) { s.Nets = []hypervisor.Netdev{{ID: "n", MAC: "02:00:00:00:00:01"}} }},
		"no directory":      {errs.NotFound, func(s *hypervisor.Spec) { s.Dir = "/nowhere/dir" }},
		"long socket path":  {errs.Invalid, func(s *hypervisor.Spec) { s.SockDir = longDir(t) }},
		"no saved state":    {errs.Invalid, func(s *hypervisor.Spec) { s.Restore = &hypervisor.Restore{Devices: "/nowhere/devices"} }},
		"no RAM file":       {errs.NotFound, func(s *hypervisor.Spec) { s.RAM.Path = "/nowhere/ram" }},
		"RAM of other size": {errs.Invalid, func(s *hypervisor.Spec) { s.RAM.Path = s.Kernel }},
		"RAM file in use":   {errs.Conflict, func(s *hypervisor.Spec) { s.RAM = hypervisor.RAMFile{Path: s.Kernel, Shared: true} }},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			bad := spec
			c.change(&bad)
			m, err := d.Start(t.Context(), bad)
			if err == nil {
				hypervisor.KillRef(t.Context(), m.Ref()) //nolint:errcheck // the test failed already
				t.Fatal("it was started")
			}
			if !errs.Is(err, c.kind) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v (%s), want kind %s", err, errs.KindOf(err), c.kind)
			}
			if left := listing(t, spec); left != "[]" {
				t.Errorf("it left %s", left)
			}
		})
	}
}

func longDir(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// failedStart: a hypervisor that refuses, or a caller that gives up, leaves no
// process and nothing but the log.
func (s Subject) failedStart(t *testing.T) {
	check := func(t *testing.T, spec hypervisor.Spec) {
		t.Helper()
		if left := listing(t, spec); left != "[]" && left != "["+paths.VMMLog+"]" && left != "["+paths.ConsoleLog+" "+paths.VMMLog+"]" {
			t.Errorf("it left %s", left)
		}
		if found, err := proc.Find(t.Context(), spec.Dir); err != nil || len(found) != 0 {
			t.Errorf("processes left: %+v, %v", found, err)
		}
	}
	t.Run("kernel-is-none", func(t *testing.T) {
		spec := s.Spec(t, "nokernel")
		spec.Kernel = filepath.Join(t.TempDir(), "vmlinux")
		if err := os.WriteFile(spec.Kernel, []byte("no kernel at all"), 0o644); err != nil {
			t.Fatal(err)
		}
		spec.RAM = hypervisor.RAMFile{Path: filepath.Join(spec.Dir, "ram"), Shared: true}
		began := time.Now()
		m, err := s.New(t).Start(t.Context(), spec)
		if err == nil {
			m.Kill(t.Context()) //nolint:errcheck // the test failed already
			t.Fatal("it was started")
		}
		t.Logf("after %v: %v", time.Since(began).Round(time.Millisecond), err)
		if errs.CodeOf(err) != "vmm_start" || errs.HintOf(err) == "" {
			t.Errorf("code %q, hint %q", errs.CodeOf(err), errs.HintOf(err))
		}
		check(t, spec)
	})
	t.Run("given-up", func(t *testing.T) {
		spec := s.Spec(t, "givenup")
		for _, after := range []time.Duration{0, 5 * time.Millisecond, 15 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			m, err := s.New(t).Start(ctx, spec)
			cancel()
			if err == nil { // a quick host: then it is a machine
				m.Kill(t.Context()) //nolint:errcheck // checked by what is left
				m.Close()
				os.Remove(m.Ref().Control)
				os.Remove(m.Ref().Endpoint.Path)
			} else if k := errs.KindOf(err); k != errs.Timeout {
				t.Errorf("after %v: kind %s, %v", after, k, err)
			}
			check(t, spec)
		}
	})
	t.Run("no-console", func(t *testing.T) {
		spec := s.Spec(t, "noconsole")
		spec.Console.Log = ""
		spec.Console.Socket = filepath.Join(spec.SockDir, paths.ConsoleSock)
		l, err := net.Listen("unix", spec.Console.Socket)
		if err != nil {
			t.Fatal(err)
		}
		l.Close() // the shim is gone
		if m, err := s.New(t).Start(t.Context(), spec); err == nil {
			m.Kill(t.Context()) //nolint:errcheck // the test failed already
			t.Error("it was started without its console")
		}
		check(t, spec)
	})
}
