//go:build e2e

package daemon_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/daemon"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/paths"
)

// newRealHouse is a house whose VMs are real microVMs of the default image. The
// image is made once, in a directory that the runs of the tests share.
func newRealHouse(t *testing.T) *house {
	t.Helper()
	h := newHouse(t)
	h.write("config/config.toml", "hypervisor = \"qemu\"\nlog_level = \"debug\"\n")
	cache := os.Getenv("BANGER_TEST_CACHE")
	if cache == "" {
		cache = fmt.Sprintf("/var/tmp/banger-test-%d", os.Geteuid())
	}
	h.env = []string{paths.EnvData + "=" + filepath.Join(cache, "data"), daemon.EnvAgent + "=" + agentBinary(t)}
	h.layout.Data = filepath.Join(cache, "data")
	h.spec = &bangerv1.Spec{Memory: 512 << 20, Disk: 1 << 30}
	h.start()
	h.pullDefaults()
	return h
}

// agentBinary is the agent as it is installed: static.
func agentBinary(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("BANGER_TEST_BIN"); dir != "" {
		return filepath.Join(dir, "banger-vsock-agent")
	}
	bin := filepath.Join(t.TempDir(), "banger-vsock-agent")
	cmd := exec.Command("go", "build", "-tags", "netgo,osusergo", "-ldflags", "-s -w", "-o", bin, "github.com/banger-dev/banger/cmd/banger-vsock-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	return bin
}

func (h *house) pullDefaults() {
	h.t.Helper()
	s, err := h.client.Images.Pull(h.t.Context(), connect.NewRequest(&bangerv1.PullImageRequest{Image: "debian-bookworm"}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	for s.Receive() {
	}
	if err := s.Err(); err != nil {
		h.t.Fatalf("make the image: %v", err)
	}
}

func (h *house) mustExec(vm string, argv ...string) string {
	h.t.Helper()
	out, err := h.exec(vm, argv...)
	if err != nil {
		h.t.Fatalf("%s: %q: %v", vm, argv, err)
	}
	return strings.TrimSpace(out)
}

// One VM's whole life in a real microVM: cloned from a template, entered,
// adopted by a new daemon, killed from outside, booted cold, grown, stopped.
func TestTheLifeOfARealMicroVM(t *testing.T) {
	h := newRealHouse(t)
	a := h.mustCreate("a")
	begun := time.Now()
	b := h.mustCreate("b")
	t.Logf("warm create: %s", time.Since(begun).Round(time.Millisecond))
	if a.GetStartKind() != "template:agent" || b.GetStartKind() != "template:agent" {
		t.Fatalf("started from %s and %s", a.GetStartKind(), b.GetStartKind())
	}
	for _, file := range []string{"/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/etc/hostname"} {
		if x, y := h.mustExec("a", "cat", file), h.mustExec("b", "cat", file); x == y || x == "" {
			t.Errorf("two clones share %s: %q", file, x)
		}
	}
	if x, y := h.mustExec("a", "sh", "-c", "head -c 16 /dev/urandom | od -An -tx1"), h.mustExec("b", "sh", "-c", "head -c 16 /dev/urandom | od -An -tx1"); x == y {
		t.Error("two clones draw the same random bytes")
	}
	if got := h.mustExec("a", "hostname"); got != "a" {
		t.Errorf("hostname %q", got)
	}
	h.notRoot(a)
	boot := h.mustExec("a", "cat", "/proc/stat")

	h.kill()
	h.start()
	v, err := h.get("a")
	if err != nil || v.GetState() != bangerv1.State_STATE_RUNNING || v.GetPid() != a.GetPid() {
		t.Fatalf("not adopted: %v %v", v, err)
	}
	btime := func(s string) string { _, s, _ = strings.Cut(s, "btime "); return strings.Fields(s)[0] }
	if got := h.mustExec("a", "cat", "/proc/stat"); btime(got) != btime(boot) {
		t.Errorf("the guest booted anew: %s, %s", btime(boot), btime(got))
	}

	killPID(t, b.GetPid())
	h.until("b is seen to be broken", func() bool {
		v, err := h.get("b")
		return err == nil && v.GetState() == bangerv1.State_STATE_BROKEN && v.GetReason() != "" && v.GetOperation() == ""
	})
	if v, err := h.startVM(t.Context(), "b"); err != nil || v.GetStartKind() != "cold" {
		t.Fatalf("%v %v", v, err)
	}
	if got := h.mustExec("b", "hostname"); got != "b" {
		t.Errorf("hostname %q", got)
	}

	size := int64(3 << 30)
	if r, err := h.set(&bangerv1.SetRequest{Vm: "a", Disk: &size}); err != nil || len(r.GetNeedsRestart()) != 0 {
		t.Fatalf("%v %v", r, err)
	}
	if got := h.mustExec("a", "df", "-BM", "--output=size", "/root"); !strings.Contains(got, "2") || strings.Contains(got, " 9") {
		t.Errorf("after growing to 3G: %s", got)
	}
	if v, err := h.stopVM(t.Context(), "a", time.Minute); err != nil || !strings.Contains(v.GetReason(), "by the guest") {
		t.Fatalf("%v %v", v, err)
	}
	for _, name := range []string{"a", "b"} {
		if err := h.deleteVM(t.Context(), name, true); err != nil {
			t.Fatal(err)
		}
	}
	h.nothingLeft()
}

// notRoot: where the daemon is root, the VM's processes are not, and belong to
// a user of the VM's own.
func (h *house) notRoot(v *bangerv1.VM) {
	h.t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.GetPid()))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t0", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} {
		if has := strings.Contains(string(status), want); has != (want != "Uid:\t0") {
			h.t.Errorf("the hypervisor's status and %q:\n%s", want, status)
		}
	}
}

// A kernel that panics is told with its last words, and kept.
func TestARealBootThatFailsIsToldAndKept(t *testing.T) {
	h := newRealHouse(t)
	_, err := h.create(t.Context(), "sick", cold, ephemeral, bootArg("rdinit=/no/such/init"), bootArg("root=/dev/nowhere"))
	if code := errs.CodeOf(err); code != "guest_died_booting" && code != "guest_no_answer" {
		t.Fatalf("%v", err)
	}
	if hint := errs.HintOf(err); !strings.Contains(hint, "last console line: ") || !strings.Contains(hint, "banger rm sick") {
		t.Errorf("hint %q", hint)
	}
	if v, err := h.get("sick"); err != nil || v.GetState() != bangerv1.State_STATE_BROKEN {
		t.Fatalf("%v %v", v, err)
	}
	if err := h.deleteVM(t.Context(), "sick", false); err != nil {
		t.Fatal(err)
	}
	h.nothingLeft()
}

// The daemon killed in the middle of a real start leaves no hypervisor behind.
func TestKilledInARealStart(t *testing.T) {
	h := newRealHouse(t)
	h.mustCreate("first") // there is a template from here on
	for _, point := range []string{"machine.before", "machine.after", "identity.before"} {
		h.term()
		h.start(daemon.EnvFailpoint + "=" + point)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if _, err := h.create(ctx, "web"); err == nil {
			t.Fatalf("%s: the daemon was not killed", point)
		}
		cancel()
		h.awaitEnd()
		if ws, ok := h.daemon.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("%s: %s", point, h.daemon.ProcessState)
		}
		h.start()
		if _, err := h.get("web"); errs.CodeOf(err) != "vm_not_found" {
			t.Errorf("%s: %v", point, err)
		}
		h.noStrays()
		h.mustExec("first", "true")
	}
}

// Commands' bytes pass unmixed and whole, and the second start is warm.
func TestCommandsInARealMicroVM(t *testing.T) {
	h := newRealHouse(t)
	v := h.mustCreate("", ephemeral)
	hold := h.newCommand(v.GetId())
	hold.release = true
	up := make(chan struct{})
	hold.each = func(c *command) bool {
		if c.out.String() == "up\n" {
			close(up)
			c.each = nil
		}
		return true
	}
	held := make(chan error, 1)
	go func() { held <- hold.run(t.Context(), "sh", "-c", "echo up; sleep 8; exit 5") }()
	<-up
	c := h.newCommand(v.GetId())
	if err := c.run(t.Context(), "sh", "-c", "seq 1 40000; echo oops >&2; exit 7"); err != nil {
		t.Fatal(err)
	}
	if c.exit.GetCode() != 7 || c.errs.String() != "oops\n" || strings.Count(c.out.String(), "\n") != 40000 {
		t.Errorf("status %d, %d lines, stderr %q", c.exit.GetCode(), strings.Count(c.out.String(), "\n"), c.errs.String())
	}
	begun := time.Now()
	h.mustExec(v.GetId(), "true")
	t.Logf("warm exec: %s", time.Since(begun).Round(100*time.Microsecond))
	// the command outlives the daemon, and its caller gets the rest
	h.kill()
	<-held
	h.start()
	if err := hold.attach(t.Context()); err != nil || hold.exit.GetCode() != 5 {
		t.Errorf("%v %v", hold.exit, err)
	}
	h.nothingLeft()
}
