package qemu

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/proc"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright": {7, 2, 22},
		"QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)":             {10, 0, 13},
		"warning: something\nQEMU emulator version 9.1\n":                           {9, 1, 0},
	} {
		if got, err := parseVersion(out); err != nil || got != want {
			t.Errorf("%q: %v, %v", out, got, err)
		}
	}
	for _, out := range []string{"", "qemu", "QEMU emulator version x", "QEMU emulator version 99999999999.1"} {
		if v, err := parseVersion(out); err == nil {
			t.Errorf("%q was read as %v", out, v)
		}
	}
	if !(version{7, 1, 99}).less(oldest) || (version{10, 0, 0}).less(version{9, 9, 9}) || (version{7, 2, 0}).less(oldest) {
		t.Error("versions are compared wrongly")
	}
}

func fakeQEMU(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbeSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct{ binary, code string }{
		"missing":     {"/nowhere/qemu", "qemu_missing"},
		"not in PATH": {"banger-no-such-qemu", "qemu_missing"},
		"old":         {fakeQEMU(t, "echo QEMU emulator version 6.2.0"), "qemu_too_old"},
		"no QEMU":     {fakeQEMU(t, "echo hello"), "qemu_unusable"},
		"fails":       {fakeQEMU(t, "exit 1"), "qemu_unusable"},
		"floods":      {fakeQEMU(t, "yes | head -c 10000000"), "qemu_unusable"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(Options{Binary: c.binary}).Probe(t.Context())
			if errs.CodeOf(err) != c.code || !errs.Is(err, errs.Unsupported) || errs.HintOf(err) == "" {
				t.Errorf("got %v (%s, hint %q), want %s", err, errs.CodeOf(err), errs.HintOf(err), c.code)
			}
		})
	}
}

// The failure of a probe is not kept: QEMU may be installed meanwhile.
func TestProbeIsRepeatedUntilItSucceeds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qemu")
	d := New(Options{Binary: path, Emulation: true})
	if _, err := d.Probe(t.Context()); err == nil {
		t.Fatal("found what is not there")
	}
	if err := os.Rename(fakeQEMU(t, "echo QEMU emulator version 7.2.1"), path); err != nil {
		t.Fatal(err)
	}
	h, err := d.Probe(t.Context())
	if err != nil || h.Version != "7.2.1" || h.Accelerator != hypervisor.Emulation || h.WhyNotKVM == "" || h.Caps.SafeCPUs != 1 {
		t.Fatalf("%+v, %v", h, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if again, err := d.Probe(t.Context()); err != nil || again != h {
		t.Errorf("the success was not kept: %+v, %v", again, err)
	}
}

func TestTSCIsMeasuredTheSameTwice(t *testing.T) {
	a, err := measureTSC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := measureTSC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	diff := max(a, b) - min(a, b)
	if hasTSC && (a < 500_000 || a > 10_000_000 || diff > 2*tscStep || a%tscStep != 0) {
		t.Errorf("measured %d and %d kHz", a, b)
	}
}

func TestParseHVA(t *testing.T) {
	if v, err := parseHVA("Host virtual address for 0x0 (microvm.ram) is 0x7f1d1ffff000\r\n"); err != nil || v != 0x7f1d1ffff000 {
		t.Errorf("%#x, %v", v, err)
	}
	for _, s := range []string{
		"", "No memory is mapped at address 0x0", "Host virtual address for 0x0 (ram) is 0x0",
		"Host virtual address for 0x0 (ram) is 0x1001", "Host virtual address for 0x0 (ram) is 0xffffffffffffffff",
		"Host virtual address for 0x1000 (ram) is 0x7f1d1ffff000", "x Host virtual address for 0x0 (ram) is 0x1000",
	} {
		if v, err := parseHVA(s); err == nil {
			t.Errorf("%q was read as %#x", s, v)
		}
	}
}

func TestPrivateRuns(t *testing.T) {
	entries := func(e ...uint64) (b []byte) {
		for _, v := range e {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
		return b
	}
	const none, ofFile = 0, pagePresent | pageOfFile
	got := privateRuns(entries(pagePresent, pageSwapped, ofFile, none, pagePresent|1<<56, none, pageSwapped|pageOfFile, pagePresent))
	if want := []run{{0, 2}, {4, 1}, {7, 1}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := privateRuns(nil); got != nil {
		t.Errorf("got %v of nothing", got)
	}
}

// The saver reads this test's own memory as it would QEMU's: what was written
// since the private mapping is found, what was not is not.
func TestSaverFindsWhatChanged(t *testing.T) {
	page := os.Getpagesize()
	const pages = 64
	base := bytes.Repeat([]byte("base"), pages*page/4)
	path := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ram, err := unix.Mmap(int(f.Fd()), 0, len(base), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(ram)
	want := bytes.Clone(base)
	for _, at := range []int{3 * page, 4 * page, 17*page + 5, (pages - 1) * page} {
		copy(ram[at:], "changed")
		copy(want[at:], "changed")
	}
	clear(ram[9*page : 10*page])
	clear(want[9*page : 10*page])
	out := &sparseBuffer{data: bytes.Clone(base)}
	s := saver{mem: self(t, "mem"), out: out, base: address(ram)}
	if err := s.save(t.Context(), self(t, "pagemap"), int64(len(ram))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.data, want) {
		t.Error("what was saved is not what the memory holds")
	}
	if out.written != 5*page {
		t.Errorf("%d bytes were written for 5 changed pages", out.written)
	}
	empty := &sparseBuffer{data: make([]byte, len(ram))}
	s = saver{mem: self(t, "mem"), out: empty, base: address(ram), skipZero: true, buf: make([]byte, saveBuffer)}
	if err := s.copy(t.Context(), 0, int64(len(ram))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(empty.data, want) || empty.written != (pages-1)*page {
		t.Errorf("zeros were written, or what is not zero was not: %d bytes", empty.written)
	}
}

// sparseBuffer is a file in memory that counts what is written.
type sparseBuffer struct {
	data    []byte
	written int
}

func (b *sparseBuffer) WriteAt(p []byte, off int64) (int, error) {
	b.written += len(p)
	return copy(b.data[off:], p), nil
}

func self(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	from, err := os.Create(filepath.Join(dir, "from"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	const size = 64 << 20
	if err := from.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 5 << 20, size - 4096} {
		if _, err := from.WriteAt(bytes.Repeat([]byte{'x'}, 4096), at); err != nil {
			t.Fatal(err)
		}
	}
	to, err := os.Create(filepath.Join(dir, "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := copySparse(t.Context(), to, from, size); err != nil {
		t.Fatal(err)
	}
	a, errA := os.ReadFile(from.Name())
	b, errB := os.ReadFile(to.Name())
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("the copy differs: %v, %v", errA, errB)
	}
	fi, err := to.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if blocks := fi.Sys().(*syscall.Stat_t).Blocks; blocks > 2048 {
		t.Errorf("holes were filled: %d KiB for 12", blocks/2)
	}
}

func TestUsageParsers(t *testing.T) {
	rss, private, err := parseRollup("55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  1000 kB\nPss: 1 kB\nPrivate_Clean: 100 kB\nPrivate_Dirty: 200 kB\nSwap: 50 kB\nSwapPss: 9 kB\n")
	if err != nil || rss != 1000<<10 || private != 250<<10 {
		t.Errorf("%d, %d, %v", rss, private, err)
	}
	if _, _, err := parseRollup("Private_Dirty: 1 kB\n"); err == nil {
		t.Error("no total, no error")
	}
	rss, private, err = parseStatm("500 300 100 1 0 2 0\n", 4096)
	if err != nil || rss != 300*4096 || private != 200*4096 {
		t.Errorf("%d, %d, %v", rss, private, err)
	}
	if _, _, err := parseStatm("1 2", 4096); err == nil {
		t.Error("too short, no error")
	}
}

func TestHowItEnded(t *testing.T) {
	segv, kill := int(syscall.SIGSEGV), int(syscall.SIGKILL)
	for _, c := range []struct {
		name   string
		end    proc.Exit
		said   hypervisor.Cause
		killed bool
		log    string
		cause  hypervisor.Cause
		reason string
	}{
		{"power-off", proc.Exit{Known: true}, hypervisor.CausePowerOff, false, "", hypervisor.CausePowerOff, "the guest powered off"},
		{"reset", proc.Exit{Known: true}, hypervisor.CauseReset, false, "", hypervisor.CauseReset, "the guest rebooted, or its kernel panicked"},
		{"killed", proc.Exit{Known: true, Signal: kill}, "", true, "", hypervisor.CauseHost, "it was killed"},
		{"adopted, killed", proc.Exit{}, "", true, "", hypervisor.CauseHost, "it was killed"},
		{"out of memory", proc.Exit{Known: true, Signal: kill}, "", false, "", hypervisor.CauseHost, "QEMU was ended by signal 9 (killed)"},
		{"crash", proc.Exit{Known: true, Signal: segv}, "", false, "oh", hypervisor.CauseCrash, "QEMU was ended by signal 11 (segmentation fault): oh"},
		{"refused", proc.Exit{Known: true, Code: 1}, "", false, "no such option", hypervisor.CauseCrash, "QEMU ended with status 1: no such option"},
		{"adopted, unknown", proc.Exit{}, "", false, "", hypervisor.CauseUnknown, "QEMU ended"},
		{"power-off before the kill", proc.Exit{Known: true}, hypervisor.CausePowerOff, true, "", hypervisor.CausePowerOff, "the guest powered off"},
	} {
		if x := exitOf(c.end, c.said, c.killed, c.log); x.Cause != c.cause || x.Reason != c.reason {
			t.Errorf("%s: %+v, want %s, %q", c.name, x, c.cause, c.reason)
		}
	}
}

func TestLastLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "thevm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	for content, want := range map[string]string{
		"":                        "",
		"a\nthevm: the reason\n":  "the reason",
		"qemu-system-x86_64: x\n": "x",
		"real\nthevm: Expected vmdescription section, but got 0\nthevm: terminating on signal 15 from pid 1\n": "real",
		"esc \x1b[2J\u202eevil\u0085\x00 end": "esc [2J evil end",
		strings.Repeat("y", 20<<10):           strings.Repeat("y", lineLimit) + "…",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path); got != want {
			t.Errorf("%.40q: got %.60q, want %.60q", content, got, want)
		}
	}
	if got := lastLine(path + ".none"); got != "" {
		t.Errorf("of no file: %q", got)
	}
}

func TestAllows(t *testing.T) {
	user := hypervisor.Credential{UID: 10, GID: 20}
	for _, c := range []struct {
		uid, gid, mode, want uint32
		ok                   bool
	}{
		{10, 0, 0o600, 0o6, true}, {10, 0, 0o400, 0o6, false}, {10, 20, 0o066, 0o4, false},
		{0, 20, 0o640, 0o4, true}, {0, 20, 0o640, 0o6, false}, {0, 20, 0o604, 0o4, false},
		{0, 0, 0o644, 0o4, true}, {0, 0, 0o644, 0o6, false}, {0, 0, 0o600, 0o4, false},
	} {
		st := unix.Stat_t{Uid: c.uid, Gid: c.gid, Mode: c.mode}
		if got := allows(st, user, c.want); got != c.ok {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func FuzzParseHVA(f *testing.F) {
	f.Add("Host virtual address for 0x0 (microvm.ram) is 0x7f1d1ffff000\r\n")
	f.Add("Host virtual address for 0x0 () is 0x")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := parseHVA(s); err == nil && (v == 0 || v%4096 != 0 || v>>63 != 0) {
			t.Errorf("%q gives %#x", s, v)
		}
	})
}

func FuzzParseRollup(f *testing.F) {
	f.Add("Rss: 1 kB\nPrivate_Dirty: 2 kB\n")
	f.Add("Rss: 99999999999999999999 kB\n")
	f.Fuzz(func(t *testing.T, s string) {
		if rss, _, err := parseRollup(s); err == nil && rss < 0 && !strings.Contains(s, "-") {
			t.Errorf("%q gives %d", s, rss)
		}
	})
}
