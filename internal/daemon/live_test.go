package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor/hosted"
)

func killPID(t *testing.T, pid int64) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("no pid: %d", pid)
	}
	if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestFromCreateToDelete(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("web")
	if v.GetState() != bangerv1.State_STATE_RUNNING || v.GetStartKind() != "template:agent" || v.GetPid() == 0 {
		t.Fatalf("%v", v)
	}
	if out, err := h.exec("web", "echo", "hi"); err != nil || out != "hi\n" {
		t.Fatalf("%q %v", out, err)
	}
	if err := h.deleteVM(t.Context(), "web", false); errs.CodeOf(err) != "vm_running" {
		t.Fatalf("a running VM was deleted without force: %v", err)
	}
	if v, err := h.stopVM(t.Context(), v.GetId()[:6], 0); err != nil || v.GetState() != bangerv1.State_STATE_STOPPED {
		t.Fatalf("%v %v", v, err)
	}
	if _, err := h.exec("web", "true"); errs.CodeOf(err) != "vm_stopped" || !strings.Contains(errs.HintOf(err), "vm start web") {
		t.Fatalf("%v", err)
	}
	if v, err := h.startVM(t.Context(), "web"); err != nil || v.GetStartKind() != "cold" {
		t.Fatalf("%v %v", v, err)
	}
	if err := h.deleteVM(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	h.nothingLeft()
}

// Lesson 1: arguments arrive exactly as typed, and so does the status.
func TestArgumentsArriveAsTyped(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("web")
	odd := []string{"", " ", "a b", `"`, `'`, "$HOME", "*", "\\", "\n", "ü", "--", "-c"}
	out, err := h.exec("web", append([]string{"printf", `[%s]\n`}, odd...)...)
	want := "[" + strings.Join(odd, "]\n[") + "]\n"
	if err != nil || out != want {
		t.Errorf("%q, want %q (%v)", out, want, err)
	}
	c := h.newCommand("web")
	if err := c.run(t.Context(), "sh", "-c", "exit 42"); err != nil || c.exit.GetCode() != 42 {
		t.Errorf("%v %v", c.exit, err)
	}
	c = h.newCommand("web")
	if err := c.run(t.Context(), "no-such-command"); err != nil || c.exit.GetCode() != 127 {
		t.Errorf("%v %v", c.exit, err)
	}
}

// Lesson 20, and I-nothing-half-made: what is refused leaves nothing behind.
func TestBadInputLeavesNothing(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("taken", noStart)
	for code, o := range map[string]createOpt{
		"vm_name_taken":      func(r *bangerv1.CreateRequest) { r.Name = "taken" },
		"vm_name_invalid":    func(r *bangerv1.CreateRequest) { r.Name = "No Label" },
		"vm_cpus_invalid":    func(r *bangerv1.CreateRequest) { r.Spec.Cpus = 4000 },
		"vm_memory_invalid":  func(r *bangerv1.CreateRequest) { r.Spec.Memory = 1 },
		"vm_disk_invalid":    func(r *bangerv1.CreateRequest) { r.Spec.Disk = -4 },
		"image_unknown":      func(r *bangerv1.CreateRequest) { r.Spec.Image = "missing" },
		"wait_invalid":       func(r *bangerv1.CreateRequest) { r.Wait = "forever" },
		"ephemeral_no_start": func(r *bangerv1.CreateRequest) { r.Ephemeral, r.NoStart = true, true },
		"duration_invalid":   func(r *bangerv1.CreateRequest) { r.Expires = pbDuration(-time.Hour) },
	} {
		if _, err := h.create(t.Context(), "", o); errs.CodeOf(err) != code || errs.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q)", code, err, errs.HintOf(err))
		}
	}
	if _, err := h.get("tekan"); errs.CodeOf(err) != "vm_not_found" || !strings.Contains(errs.HintOf(err), `did you mean "taken"`) {
		t.Errorf("%v, hint %q", err, errs.HintOf(err))
	}
	if all := h.list(); len(all) != 1 {
		t.Errorf("left: %v", summaries(all))
	}
	h.noStrays()
}

// Lesson 19: a VM that was never reached is kept for its log and says so, even
// where it was to go with its command.
func TestAnUnreachableVMIsKept(t *testing.T) {
	h := newHouse(t)
	h.start()
	_, err := h.create(t.Context(), "sick", cold, ephemeral, bootArg(hosted.Hang), waitFor(300*time.Millisecond))
	if errs.CodeOf(err) != "guest_no_answer" || errs.KindOf(err) != errs.Timeout || !strings.Contains(err.Error(), "kept for you to look at") ||
		!strings.Contains(errs.HintOf(err), "banger logs sick --console") || !strings.Contains(errs.HintOf(err), "hosted guest hangs") {
		t.Fatalf("%v / %s", err, errs.HintOf(err))
	}
	_, err = h.create(t.Context(), "dead", cold, ephemeral, bootArg(hosted.Die))
	if errs.CodeOf(err) != "guest_died_booting" || !strings.Contains(err.Error(), "status 3") || !strings.Contains(errs.HintOf(err), "unable to mount root") {
		t.Fatalf("%v / %s", err, errs.HintOf(err))
	}
	for _, name := range []string{"sick", "dead"} {
		v, err := h.get(name)
		if err != nil || v.GetState() != bangerv1.State_STATE_BROKEN || v.GetReason() == "" || v.GetEphemeral() {
			t.Fatalf("%v %v", v, err)
		}
		if err := h.deleteVM(t.Context(), name, false); err != nil {
			t.Fatal(err)
		}
	}
	h.nothingLeft()
}

// A template that cannot be made, or whose clone does not come up, costs a cold
// boot, said once, and not the VM.
func TestWithoutATemplateVMsBootCold(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("one")
	keys, err := filepath.Glob(filepath.Join(h.layout.Templates(), "*", "devices"))
	if err != nil || len(keys) != 1 {
		t.Fatalf("templates: %v %v", keys, err)
	}
	if err := os.WriteFile(keys[0], []byte("not a state"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.deleteVM(t.Context(), v.GetId(), true)
	if v := h.mustCreate("two"); v.GetStartKind() != "cold" {
		t.Fatalf("started from %s", v.GetStartKind())
	}
	if _, err := os.Stat(keys[0]); !errors.Is(err, os.ErrNotExist) {
		t.Error("the bad template was kept")
	}
	if v := h.mustCreate("three"); v.GetStartKind() != "template:agent" {
		t.Fatalf("no new template was made: %s", v.GetStartKind())
	}
}

// The crash of a hypervisor is noticed at once and shown with its reason.
func TestAHypervisorsCrashIsNoticed(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("web", cold)
	start := time.Now()
	killPID(t, v.GetPid())
	h.until("it is seen to be broken", func() bool {
		v, err := h.get("web")
		return err == nil && v.GetState() == bangerv1.State_STATE_BROKEN && strings.Contains(v.GetReason(), "signal 9")
	})
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("noticed after %s", d)
	}
	if len(h.processes()) != 0 {
		t.Error("its shim was left")
	}
	if _, err := h.startVM(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
}

// Lesson 6: each rung of the ladder has its limit, and the stop is finished
// when its caller has left.
func TestAStopIsFinishedWithoutItsCaller(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("deaf", cold, bootArg(hosted.Deaf))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := h.stopVM(ctx, "deaf", 400*time.Millisecond); err == nil {
		t.Fatal("a deaf guest stopped at once")
	}
	if v, err := h.get("deaf"); err != nil || v.GetState() != bangerv1.State_STATE_STOPPING {
		t.Fatalf("%v %v", v, err)
	}
	if _, err := h.startVM(t.Context(), "deaf"); errs.KindOf(err) != errs.Busy || !strings.Contains(err.Error(), "busy: stop, since") {
		t.Fatalf("%v", err)
	}
	h.until("it is stopped", func() bool {
		v, err := h.get("deaf")
		return err == nil && v.GetState() == bangerv1.State_STATE_STOPPED && strings.Contains(v.GetReason(), "killed: it did not stop")
	})
}

// A daemon that ends in the middle of an orderly stop does not pull the plug:
// the next one goes on with it.
func TestAnOrderlyStopOutlivesTheDaemon(t *testing.T) {
	h := newHouse(t)
	h.write("config/config.toml", "hypervisor = \"hosted\"\n[limits]\nstop_timeout = \"2s\"\n")
	h.start()
	pid := h.mustCreate("deaf", cold, bootArg(hosted.Deaf)).GetPid()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := h.stopVM(ctx, "deaf", time.Minute); err == nil {
		t.Fatal("a deaf guest stopped at once")
	}
	h.term()
	if err := syscall.Kill(int(pid), 0); err != nil {
		t.Fatal("the daemon's end ended the VM")
	}
	h.start()
	if v, err := h.get("deaf"); err != nil || v.GetState() != bangerv1.State_STATE_STOPPING || v.GetPid() != pid {
		t.Fatalf("%v %v", v, err)
	}
	h.until("it is stopped", func() bool {
		v, err := h.get("deaf")
		return err == nil && v.GetState() == bangerv1.State_STATE_STOPPED && strings.Contains(v.GetReason(), "killed: it did not stop within")
	})
	h.noStrays()
}

// K1: a hundred at once, all of them, and nothing left.
func TestAHundredAtOnce(t *testing.T) {
	n := 100
	if !whole {
		n = 20
	}
	h := newHouse(t)
	h.start()
	var wg sync.WaitGroup
	failures := make(chan error, n)
	ids := make(chan string, n)
	start := time.Now()
	for range n {
		wg.Go(func() {
			v, err := h.create(t.Context(), "", ephemeral)
			if err != nil {
				failures <- fmt.Errorf("create: %w", err)
				return
			}
			ids <- v.GetId() + " " + v.GetName()
			c := h.newCommand(v.GetId())
			c.release = true
			if err := c.run(t.Context(), "true"); err != nil || c.exit.GetCode() != 0 {
				failures <- fmt.Errorf("exec: %w %v", err, c.exit)
			}
		})
	}
	wg.Wait()
	close(failures)
	close(ids)
	for err := range failures {
		t.Error(err)
	}
	seen := map[string]bool{}
	for id := range ids {
		for _, part := range strings.Fields(id) {
			if seen[part] {
				t.Errorf("%s twice", part)
			}
			seen[part] = true
		}
	}
	t.Logf("%d in %s", n, time.Since(start).Round(time.Millisecond))
	h.nothingLeft()
}

// K4: a VM that hangs in its start delays nobody else.
func TestAHangingStartDelaysNobody(t *testing.T) {
	h := newHouse(t)
	h.write("config/config.toml", "hypervisor = \"hosted\"\n[limits]\nparallel_boots = 2\n")
	h.start()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := h.create(ctx, "stuck", cold, bootArg(hosted.Hang))
		done <- err
	}()
	h.until("it is starting", func() bool { v, err := h.get("stuck"); return err == nil && v.GetOperation() == "create" })
	for range 50 {
		start := time.Now()
		h.list()
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("a list took %s", d)
		}
	}
	if _, err := h.create(t.Context(), "web", cold); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Fatal("a hanging guest came up")
	}
	h.until("it is undone", func() bool { return len(h.list()) == 1 })
	h.noStrays()
}

// Lesson 11: of many who want one name exactly one gets it.
func TestOneNameIsGivenOnce(t *testing.T) {
	h := newHouse(t)
	h.start()
	var wg sync.WaitGroup
	results := make(chan error, 8)
	for range 8 {
		wg.Go(func() {
			_, err := h.create(t.Context(), "web", noStart)
			results <- err
		})
	}
	wg.Wait()
	close(results)
	made := 0
	for err := range results {
		switch {
		case err == nil:
			made++
		case errs.CodeOf(err) != "vm_name_taken":
			t.Error(err)
		}
	}
	if made != 1 || len(h.list()) != 1 {
		t.Fatalf("%d made, %v", made, summaries(h.list()))
	}
	h.noStrays()
}

// K7: a creation that is given up at any moment leaves nothing.
func TestACreationThatIsGivenUpLeavesNothing(t *testing.T) {
	h := newHouse(t)
	h.start()
	for i := range 12 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*i)*2*time.Millisecond)
		v, err := h.create(ctx, "", cold)
		cancel()
		if err == nil {
			if err := h.deleteVM(t.Context(), v.GetId(), true); err != nil {
				t.Fatal(err)
			}
		}
	}
	// one that was done in the very moment in which its caller gave up is whole
	for _, v := range h.list() {
		if v.GetState() == bangerv1.State_STATE_RUNNING && v.GetOperation() == "" {
			if err := h.deleteVM(t.Context(), v.GetId(), true); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.nothingLeft()
}

// An ephemeral VM goes with its command, also when its caller was killed.
func TestAnEphemeralVMGoesWithItsCommand(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("", ephemeral)
	a, b := h.newCommand(v.GetId()), h.newCommand(v.GetId())
	a.release, b.release = true, true
	var wg sync.WaitGroup
	begun := make(chan struct{})
	var once sync.Once
	b.each = func(*command) bool { once.Do(func() { close(begun) }); return true }
	wg.Go(func() {
		if err := b.run(t.Context(), "sleep", "0.3"); err != nil {
			t.Error(err)
		}
	})
	<-begun
	if err := a.run(t.Context(), "true"); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	h.nothingLeft()
}

// A7: a guest that floods its console costs a bounded file and no memory.
func TestAFloodingConsoleIsBounded(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("loud", cold, bootArg(hosted.Flood))
	h.until("it has written much", func() bool {
		_, err := os.Stat(filepath.Join(v.GetDir(), "console.log.1"))
		return err == nil
	})
	if _, err := h.exec("loud", "sleep", "0.5"); err != nil {
		t.Fatal(err)
	}
	var sum int64
	files, _ := filepath.Glob(filepath.Join(v.GetDir(), "console.log*"))
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			sum += fi.Size()
		}
	}
	if sum == 0 || sum > 5<<20 {
		t.Fatalf("%d bytes of console in %v", sum, files)
	}
}

// Lesson 2: what banger did not make is not deleted.
func TestForeignFilesStay(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("web", noStart)
	mine := filepath.Join(v.GetDir(), "my-key")
	if err := os.WriteFile(mine, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.deleteVM(t.Context(), "web", false); errs.CodeOf(err) != "delete_incomplete" || !strings.Contains(err.Error(), "my-key") {
		t.Fatalf("%v", err)
	}
	if b, err := os.ReadFile(mine); err != nil || !bytes.Equal(b, []byte("precious")) {
		t.Fatal("the user's file is gone")
	}
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if err := h.deleteVM(t.Context(), v.GetId(), true); err != nil {
		t.Fatal(err)
	}
	h.nothingLeft()
}
