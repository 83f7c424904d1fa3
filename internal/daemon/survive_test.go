package daemon_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/proc"
	"github.com/banger-dev/banger/internal/store"
	"github.com/banger-dev/banger/internal/vm"
)

// J1: VMs outlive the daemon, however it ends, and are adopted: same process,
// reached at once. Lesson 7: the whole process group may be killed.
func TestVMsOutliveTheDaemon(t *testing.T) {
	h := newHouse(t)
	h.start()
	rounds, vms := 3, 3
	if os.Getenv("BANGER_SOAK") != "" {
		rounds, vms = 100, 20
	}
	pids := map[string]int64{}
	for i := range vms {
		v := h.mustCreate(fmt.Sprintf("vm%d", i))
		pids[v.GetName()] = v.GetPid()
	}
	for round := range rounds {
		switch round % 3 {
		case 0:
			h.kill()
		case 1:
			h.term()
		case 2:
			if err := syscall.Kill(-h.daemon.Process.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			h.awaitEnd()
		}
		h.start()
		begun := time.Now()
		for name, pid := range pids {
			v, err := h.get(name)
			if err != nil || v.GetState() != bangerv1.State_STATE_RUNNING || v.GetPid() != pid {
				t.Fatalf("round %d: %v %v, pid %d before", round, v, err, pid)
			}
			if out, err := h.exec(name, "echo", "here"); err != nil || out != "here\n" {
				t.Fatalf("round %d: %q %v", round, out, err)
			}
		}
		if d := time.Since(begun); d > time.Duration(vms)*time.Second {
			t.Errorf("round %d: reached after %s", round, d)
		}
	}
	h.noStrays()
}

// J2: a command goes on while no daemon is there; its caller attaches at its
// offsets and misses no byte, and still gets the status.
func TestACommandOutlivesTheDaemon(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("web")
	const lines = 20000
	c := h.newCommand("web")
	c.each = func(c *command) bool { return c.out.Len() < 30000 }
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; exit 9", lines)
	if err := c.run(t.Context(), "sh", "-c", script); !errors.Is(err, errLeft) {
		t.Fatalf("%v", err)
	}
	for stop := 90000; stop < 300000 && c.exit == nil; stop += 60000 {
		h.kill()
		h.start()
		c.each = func(c *command) bool { return c.out.Len() < stop }
		if err := c.attach(t.Context()); err != nil && !errors.Is(err, errLeft) {
			t.Fatalf("at %d: %v", c.out.Len(), err)
		}
	}
	h.term()
	h.start()
	c.each = nil
	if c.exit == nil {
		if err := c.attach(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var want bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if !bytes.Equal(c.out.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes of output, %d expected", c.out.Len(), want.Len())
	}
	if c.exit.GetCode() != 9 {
		t.Errorf("%v", c.exit)
	}
}

// change rewrites a VM's stored record while no daemon runs.
func (h *house) change(name string, f func(*vm.Record)) {
	h.t.Helper()
	s, err := store.Open(h.t.Context(), h.layout.Database())
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	all, err := s.ListVMs(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, r := range all {
		if r.Name == name {
			f(&r)
			if err := s.PutVM(h.t.Context(), r); err != nil {
				h.t.Fatal(err)
			}
			return
		}
	}
	h.t.Fatalf("no record of %s", name)
}

// I3: after a reboot what ran is stopped, says why, and no stale pid is trusted.
func TestAfterARebootVMsAreStopped(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("web")
	h.kill()
	for _, p := range h.processes() {
		if err := proc.Kill(t.Context(), p.Identity); err != nil {
			t.Fatal(err)
		}
	}
	h.change("web", func(r *vm.Record) {
		r.HostBoot, r.Machine.Process.Boot, r.Shim.Process.Boot = "another-boot", "another-boot", "another-boot"
		r.Machine.Process.PID = os.Getpid() // the pid is somebody else's by now
	})
	if err := os.RemoveAll(h.layout.Runtime); err != nil {
		t.Fatal(err)
	}
	h.start()
	v, err := h.get("web")
	if err != nil || v.GetState() != bangerv1.State_STATE_STOPPED || v.GetReason() != "the host was rebooted" {
		t.Fatalf("%v %v", v, err)
	}
	if _, err := h.startVM(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
}

// I4, lesson 8: a pid that is another process's now is never signalled.
func TestAReusedPIDIsLeftAlone(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("web")
	h.kill()
	for _, p := range h.processes() {
		if err := proc.Kill(t.Context(), p.Identity); err != nil {
			t.Fatal(err)
		}
	}
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	h.change("web", func(r *vm.Record) {
		r.Machine.Process.PID, r.Shim.Process.PID = other.Process.Pid, other.Process.Pid
	})
	h.start()
	v, err := h.get("web")
	if err != nil || v.GetState() != bangerv1.State_STATE_BROKEN || !strings.Contains(v.GetReason(), "ended while no daemon ran") {
		t.Fatalf("%v %v", v, err)
	}
	if err := h.deleteVM(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatal("the other process was ended")
	}
}

// I5 and I10: with the database lost VMs are taken back from their own records,
// running; what has no valid record is reported and reaped only when asked.
func TestALostDatabaseLosesNoVM(t *testing.T) {
	h := newHouse(t)
	h.start()
	pid := h.mustCreate("web").GetPid()
	h.mustCreate("idle", noStart)
	h.kill()
	db := h.layout.Database()
	if err := errors.Join(os.Remove(db+"-wal"), os.Remove(db+"-shm"), os.WriteFile(db, bytes.Repeat([]byte("garbage "), 1000), 0o600)); err != nil {
		t.Fatal(err)
	}
	out, err := h.fails()
	if err == nil || !strings.Contains(string(out), "is damaged") {
		t.Fatalf("a damaged database was taken: %v %s", err, out)
	}
	h.start("TEST_REBUILD=1")
	v, err := h.get("web")
	if err != nil || v.GetState() != bangerv1.State_STATE_RUNNING || v.GetPid() != pid {
		t.Fatalf("%v %v", v, err)
	}
	if out, err := h.exec("web", "echo", "here"); err != nil || out != "here\n" {
		t.Fatalf("%q %v", out, err)
	}
	if v, err := h.get("idle"); err != nil || v.GetState() != bangerv1.State_STATE_STOPPED {
		t.Fatalf("%v %v", v, err)
	}
}

func TestStraysAreReapedOnlyWhenAsked(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("web")
	h.kill()
	// the row goes, and with it what could bring it back
	h.change("web", func(r *vm.Record) { r.Name = "gone" })
	s, err := store.Open(t.Context(), h.layout.Database())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.DeleteVM(t.Context(), v.GetId()), s.Close(), os.Remove(filepath.Join(v.GetDir(), "vm.json"))); err != nil {
		t.Fatal(err)
	}
	h.start()
	// a look-alike of another VM directory: not ours
	foreign := proc.Marker{VM: "0123456789abcdef", Dir: "/somewhere/else/0123456789abcdef"}
	other := exec.Command("sh", "-c", "sleep 600; true", foreign.String())
	other.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer syscall.Kill(-other.Process.Pid, syscall.SIGKILL)
	found := h.gc(true)
	if len(found.GetFound()) < 3 || len(found.GetRemoved()) != 0 || len(h.processes()) != 2 {
		t.Fatalf("%v, %d processes", found, len(h.processes()))
	}
	removed := h.gc(false)
	if len(removed.GetRemoved()) != len(found.GetFound()) {
		t.Fatalf("%v", removed)
	}
	h.nothingLeft()
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatal("a process of others was ended")
	}
}

// I13: of two daemons one serves; the other says so and ends well.
func TestOneDaemonForAStateDirectory(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("web")
	for range 3 {
		out, err := h.fails()
		if err != nil || !strings.Contains(string(out), "another one") {
			t.Fatalf("%v %s", err, out)
		}
	}
	if _, err := h.exec("web", "true"); err != nil {
		t.Fatal(err)
	}
}

// I14: a state directory that others could change is refused, with the reason.
func TestAHostileDirectoryIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(h *house) error{
		"open to all":   func(h *house) error { return os.Chmod(h.layout.State, 0o777) },
		"group may see": func(h *house) error { return os.Chmod(h.layout.Runtime, 0o750) },
		"a link": func(h *house) error {
			real := h.layout.State + "-real"
			return errors.Join(os.Rename(h.layout.State, real), os.Symlink(real, h.layout.State))
		},
		"a file": func(h *house) error {
			return errors.Join(os.RemoveAll(h.layout.State), os.WriteFile(h.layout.State, nil, 0o600))
		},
		"another's": func(h *house) error {
			if os.Geteuid() != 0 {
				return os.Chmod(h.layout.State, 0o707) // an ordinary user cannot give files away
			}
			return os.Chown(h.layout.State, 12345, 12345)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			for _, dir := range []string{h.layout.State, h.layout.Runtime} {
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := spoil(h); err != nil {
				t.Fatal(err)
			}
			out, err := h.fails()
			if err == nil || !strings.Contains(string(out), h.layout.State) && !strings.Contains(string(out), h.layout.Runtime) {
				t.Fatalf("%v %s", err, out)
			}
			if _, err := os.Lstat(h.layout.Database()); err == nil {
				t.Error("a database was made there")
			}
		})
	}
}

// E5: whatever the caller's umask, nothing is for others.
func TestNothingIsForOthers(t *testing.T) {
	h := newHouse(t)
	old := unix.Umask(0)
	h.start()
	unix.Umask(old)
	h.mustCreate("web")
	h.exec("web", "true")
	h.stopVM(t.Context(), "web", time.Second)
	h.startVM(t.Context(), "web")
	seen := 0
	err := filepath.WalkDir(h.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		seen++
		if fi.Mode().Perm()&0o077 != 0 && fi.Mode().Type() != fs.ModeSymlink {
			t.Errorf("%s: %s", path, fi.Mode())
		}
		return nil
	})
	if err != nil || seen < 10 {
		t.Fatal(seen, err)
	}
}

// E8: a VM's secrets stand in no argument list, no environment, no log and not
// in the database.
func TestSecretsStayInTheirFiles(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("web")
	h.exec("web", "true")
	text, err := os.ReadFile(filepath.Join(v.GetDir(), "token"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	forms := []string{string(token), strings.TrimSpace(string(text)), base64.StdEncoding.EncodeToString(token), base64.RawURLEncoding.EncodeToString(token)}
	look := func(where string, b []byte) {
		for _, f := range forms {
			if bytes.Contains(b, []byte(f)) {
				t.Errorf("the token stands in %s", where)
			}
		}
	}
	files := []string{h.layout.DaemonLog(), h.layout.Database(), h.layout.Database() + "-wal", filepath.Join(v.GetDir(), "vm.json"), filepath.Join(v.GetDir(), "hypervisor.log")}
	for _, p := range h.processes() {
		files = append(files, fmt.Sprintf("/proc/%d/cmdline", p.Identity.PID), fmt.Sprintf("/proc/%d/environ", p.Identity.PID))
	}
	files = append(files, fmt.Sprintf("/proc/%d/environ", h.daemon.Process.Pid))
	read := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && len(b) > 0 {
			read++
		}
		look(f, b)
	}
	if read < 6 {
		t.Fatalf("only %d of %v could be read", read, files)
	}
	shown, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	look("the API", shown)
}

// Lesson 22: replacing the binaries leaves VMs running, and the next daemon,
// a new binary, goes on with them.
func TestVMsSurviveAReplacedBinary(t *testing.T) {
	h := newHouse(t)
	self, err := os.ReadFile(h.program)
	if err != nil {
		t.Fatal(err)
	}
	h.program = filepath.Join(h.home, "bangerd")
	install := func() {
		tmp := h.program + ".new"
		if err := errors.Join(os.WriteFile(tmp, self, 0o700), os.Rename(tmp, h.program)); err != nil {
			t.Fatal(err)
		}
	}
	install()
	h.start()
	v := h.mustCreate("web")
	install()
	h.mustCreate("second") // the old daemon goes on with the new program's processes
	h.term()
	h.start()
	if got, err := h.get("web"); err != nil || got.GetPid() != v.GetPid() {
		t.Fatalf("%v %v", got, err)
	}
	for _, name := range []string{"web", "second"} {
		if _, err := h.exec(name, "true"); err != nil {
			t.Fatal(err)
		}
	}
}

// A guest that cannot prove to be the VM that is meant is refused (B5).
func TestSwappedSocketsAreNoticed(t *testing.T) {
	h := newHouse(t)
	h.start()
	a, b := h.mustCreate("a"), h.mustCreate("b")
	h.kill()
	run := func(v *bangerv1.VM) string { return filepath.Join(h.layout.VMRun(v.GetId()), "agent.sock") }
	tmp := filepath.Join(h.layout.Runtime, "swap")
	if err := errors.Join(os.Rename(run(a), tmp), os.Rename(run(b), run(a)), os.Rename(tmp, run(b))); err != nil {
		t.Fatal(err)
	}
	h.start()
	for _, name := range []string{"a", "b"} {
		if _, err := h.exec(name, "true"); errs.CodeOf(err) != "guest_identity" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// J6: asked to, the daemon stops its VMs in an orderly way before it ends.
func TestShutdownWithItsVMs(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("a")
	h.mustCreate("b")
	h.shutdown(true)
	h.awaitEnd()
	if left := h.processes(); len(left) != 0 {
		t.Fatalf("%d processes are left", len(left))
	}
	h.start()
	for _, v := range h.list() {
		if v.GetState() != bangerv1.State_STATE_STOPPED || !strings.Contains(v.GetReason(), "by the guest") {
			t.Errorf("%v", summaries([]*bangerv1.VM{v}))
		}
	}
}
