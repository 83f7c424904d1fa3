package proc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/proc"
)

const helperEnv = "BANGER_PROC_TEST_HELPER"

// TestMain doubles as the programs that the tests start.
func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "exit7":
		os.Exit(7)
	case "stubborn": // ignores SIGTERM, says when it does
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		linger()
	case "meek":
		fmt.Println("ready")
		linger()
	case "parent": // starts a process, names it, and ends
		p, err := proc.Start(helper("meek"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := json.NewEncoder(os.Stdout).Encode(p.Identity()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "report":
		var lim unix.Rlimit
		// the limit is set right after the start, so it is waited for
		for range 2000 {
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && lim.Max == 77 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		extra := make([]byte, 5)
		n, _ := os.NewFile(3, "extra").Read(extra)
		wd, _ := os.Getwd()
		sid, _ := unix.Getsid(0)
		fmt.Printf("%d %d %s %q %v %s\n", lim.Max, len(os.Environ()), wd, extra[:n], sid == os.Getpid(), strings.Join(os.Args[1:], "|"))
	}
	os.Exit(0)
}

// linger stays until it is killed. (select{} would be called a deadlock.)
func linger() {
	for {
		time.Sleep(time.Hour)
	}
}

func helper(mode string, args ...string) proc.Cmd {
	return proc.Cmd{Path: "/proc/self/exe", Args: args, Env: []string{helperEnv + "=" + mode}}
}

func start(t *testing.T, cmd proc.Cmd) *proc.Process {
	t.Helper()
	p, err := proc.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Signal(unix.SIGKILL) //nolint:errcheck // it may have ended
		<-p.Done()
		p.Close()
	})
	return p
}

// startReady starts a helper and returns once it said that it is ready.
func startReady(t *testing.T, mode string, args ...string) *proc.Process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := helper(mode, args...)
	cmd.Stdout = w
	p := start(t, cmd)
	w.Close()
	if _, err := r.Read(make([]byte, 16)); err != nil {
		t.Fatalf("helper did not get ready: %v", err)
	}
	return p
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return c
}

func TestStartGivesWhatWasAsked(t *testing.T) {
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	extra := filepath.Join(dir, "extra")
	if err := os.WriteFile(extra, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	ef, err := os.Open(extra)
	if err != nil {
		t.Fatal(err)
	}
	defer ef.Close()
	cmd := helper("report", "a b", "", "c")
	cmd.Dir, cmd.Stdout, cmd.ExtraFiles = dir, out, []*os.File{ef}
	cmd.Rlimits = []proc.Rlimit{{Resource: unix.RLIMIT_NOFILE, Value: 77}}
	p := start(t, cmd)
	if err := p.Wait(ctx(t)); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("77 1 %s %q true a b||c\n", dir, "hello")
	if string(got) != want {
		t.Errorf("process saw %q, want %q", got, want)
	}
}

func TestExitIsKnownAndNoZombieStays(t *testing.T) {
	p := start(t, helper("exit7"))
	if err := p.Wait(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if got, want := p.Exit(), (proc.Exit{Known: true, Code: 7}); got != want {
		t.Errorf("exit %+v, want %+v", got, want)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(p.Identity().PID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a zombie is left: %v", err)
	}
	if proc.Alive(p.Identity()) {
		t.Error("an ended process is called alive")
	}
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, proc.ErrGone) {
		t.Errorf("signal to an ended process: %v, want ErrGone", err)
	}
	if err := p.Kill(ctx(t)); err != nil {
		t.Errorf("kill of an ended process: %v", err)
	}
}

func TestChildIsReapedAfterClose(t *testing.T) {
	p := startReady(t, "meek")
	p.Close()
	id := p.Identity()
	if !proc.Alive(id) {
		t.Fatal("closing the handle ended the process")
	}
	if err := proc.Kill(ctx(t), id); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(id.PID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a zombie is left: %v", err)
	}
}

func TestMissingProgram(t *testing.T) {
	_, err := proc.Start(proc.Cmd{Path: "/nowhere/program"})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not-exist", err)
	}
}

// I4: the record holds the pid of an unrelated process.
func TestReusedPidIsNeverSignalled(t *testing.T) {
	p := startReady(t, "meek")
	id := p.Identity()
	for name, stale := range map[string]proc.Identity{
		"other start": {PID: id.PID, Start: id.Start - 1, Boot: id.Boot},
		"other boot":  {PID: id.PID, Start: id.Start, Boot: "00000000-0000-0000-0000-000000000000"},
		"no pid":      {PID: 0, Start: id.Start, Boot: id.Boot},
		"negative":    {PID: -1, Start: id.Start, Boot: id.Boot},
	} {
		t.Run(name, func(t *testing.T) {
			if proc.Alive(stale) {
				t.Error("called alive")
			}
			if _, err := proc.Open(stale); !errors.Is(err, proc.ErrGone) {
				t.Errorf("open: %v, want ErrGone", err)
			}
			if err := proc.Kill(ctx(t), stale); err != nil {
				t.Errorf("kill: %v", err)
			}
		})
	}
	if !proc.Alive(id) {
		t.Error("the unrelated process was killed")
	}
}

func TestStrangerIsWatchedAndKilled(t *testing.T) {
	c := exec.Command("/proc/self/exe")
	c.Env = []string{helperEnv + "=parent"}
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	var id proc.Identity
	if err := json.Unmarshal(out, &id); err != nil {
		t.Fatal(err)
	}
	p, err := proc.Open(id)
	if err != nil {
		t.Fatalf("the child did not outlive its parent: %v", err)
	}
	defer p.Close()
	select {
	case <-p.Done():
		t.Fatal("done before the end")
	default:
	}
	clean, err := p.Terminate(ctx(t), 5*time.Second)
	if err != nil || !clean {
		t.Fatalf("terminate: clean=%v, %v", clean, err)
	}
	if p.Exit().Known {
		t.Error("the exit of a stranger cannot be known")
	}
	if proc.Alive(id) {
		t.Error("still alive")
	}
}

func TestTerminateKillsTheStubborn(t *testing.T) {
	p := startReady(t, "stubborn")
	began := time.Now()
	clean, err := p.Terminate(ctx(t), 50*time.Millisecond)
	if err != nil || clean {
		t.Errorf("clean=%v, %v; want a kill", clean, err)
	}
	if d := time.Since(began); d < 50*time.Millisecond {
		t.Errorf("killed after %v, before the grace was over", d)
	}
	if got := p.Exit(); got.Signal != int(unix.SIGKILL) {
		t.Errorf("exit %+v, want SIGKILL", got)
	}
}

func TestCancelledTerminateDoesNotKill(t *testing.T) {
	p := startReady(t, "stubborn")
	c, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Terminate(c, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want cancelled", err)
	}
	if !proc.Alive(p.Identity()) {
		t.Error("cancelled waiting killed the process")
	}
}

func TestFindByMarker(t *testing.T) {
	root := t.TempDir()
	m := proc.Marker{VM: "0123456789abcdef", Dir: filepath.Join(root, "vms", "0123:45,6 7")}
	p := startReady(t, "meek", "x", m.String())
	found, err := proc.Find(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Marker != m || found[0].Identity != p.Identity() || found[0].UID != uint32(os.Getuid()) {
		t.Errorf("found %+v, want %v of %v", found, m, p.Identity())
	}
	for _, other := range []string{root + "x", filepath.Join(root, "vms", "01"), filepath.Join(root, "v")} {
		if found, err := proc.Find(t.Context(), other); err != nil || len(found) != 0 {
			t.Errorf("beneath %s: found %v, %v", other, found, err)
		}
	}
}

func TestParseMarkerRefuses(t *testing.T) {
	for _, arg := range []string{"", "banger-vm:", "banger-vm:a", "banger-vm::/x", "banger-vm:a:relative", "x banger-vm:a:/x"} {
		if m, ok := proc.ParseMarker(arg); ok {
			t.Errorf("%q was read as %+v", arg, m)
		}
	}
}

func TestParseMarkerTakesAnOptionsValue(t *testing.T) {
	m := proc.Marker{VM: "a", Dir: "/x=y/z"}
	for _, arg := range []string{m.String(), "guest=" + m.String()} {
		if got, ok := proc.ParseMarker(arg); !ok || got != m {
			t.Errorf("%q was read as %+v, %v", arg, got, ok)
		}
	}
}

func TestCPUTime(t *testing.T) {
	self, err := proc.Self()
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 40*time.Millisecond; { //nolint:revive // burns time on purpose
	}
	d, err := proc.CPUTime(self)
	if err != nil || d < 20*time.Millisecond {
		t.Errorf("cpu time %v, %v", d, err)
	}
	self.Start++
	if _, err := proc.CPUTime(self); !errors.Is(err, proc.ErrGone) {
		t.Errorf("cpu time of another process: %v, want ErrGone", err)
	}
}
