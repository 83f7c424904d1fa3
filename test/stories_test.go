package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// bin is the directory of the three binaries under test.
var bin string

func TestMain(m *testing.M) {
	// under nohup SIGHUP would be ignored, here and in every child
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	os.Exit(withBinaries(m))
}

// withBinaries builds the binaries once, unless BANGER_TEST_BIN names a
// directory that has them.
func withBinaries(m *testing.M) int {
	if bin = os.Getenv("BANGER_TEST_BIN"); bin != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "banger-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir, "../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the binaries: %v\n%s", err, out)
		return 1
	}
	bin = dir
	return m.Run()
}

// home makes a place for one story's daemon: short, for the sockets in it.
func home(config string) (string, error) {
	dir, err := os.MkdirTemp("", "bg")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(dir, "config"), 0o700); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config", "config.toml"), []byte(config), 0o600)
}

// story is how the scripts of one kind run.
func story(dir, config string, env ...string) testscript.Params {
	return testscript.Params{
		Dir: dir,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status, "interrupt": interrupt, "kill9": kill9, "eventually": eventually,
		},
		Setup: func(e *testscript.Env) error {
			h, err := home(config)
			if err != nil {
				return err
			}
			e.Setenv("BANGER_HOME", h)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			e.Setenv("LANG", "C.UTF-8")
			e.Setenv("TERM", "xterm")
			for _, kv := range env {
				k, v, _ := strings.Cut(kv, "=")
				e.Setenv(k, v)
			}
			vars := e.Vars
			e.Defer(func() {
				if left := sweep(h, vars); left != "" {
					e.T().Log(left)
					defer func() { e.T().FailNow() }()
				}
				os.RemoveAll(h)
			})
			return nil
		},
	}
}

// sweep deletes a story's VMs, ends its daemon and says what is left of them.
func sweep(home string, env []string) string {
	for _, args := range [][]string{{"rm", "--all", "--force", "--yes", "-q"}, {"daemon", "stop", "-q"}} {
		cmd := exec.Command(filepath.Join(bin, "banger"), args...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			if b, lerr := os.ReadFile(filepath.Join(home, "state", "bangerd.log")); lerr == nil {
				out = append(out, b[max(0, len(b)-4000):]...)
			}
			return fmt.Sprintf("cleaning up: banger %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		left := processesOf(home)
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(deadline) {
			return "processes left behind: " + strings.Join(left, "; ")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// processesOf finds processes that were started with a story's home.
func processesOf(home string) []string {
	var out []string
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range environs {
		b, err := os.ReadFile(p)
		if err != nil || !strings.Contains("\x00"+string(b), "\x00BANGER_HOME="+home+"\x00") {
			continue
		}
		pid := filepath.Base(filepath.Dir(p))
		line, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil || len(line) == 0 {
			continue // it has ended
		}
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
		out = append(out, pid+" "+strings.ReplaceAll(string(line), "\x00", " "))
	}
	return out
}

// status N COMMAND…: the command ends with exactly this status.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var xe *exec.ExitError
	switch {
	case errors.As(err, &xe):
		got = xe.ExitCode()
		if ws, ok := xe.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			got = 128 + int(ws.Signal())
		}
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}

// said is what a command has written, while it runs.
type said struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// interrupt SIGNALS FILE STATUS COMMAND…: once the file exists, or for "-" once
// the command has written something, the signals ("INT", "INT,INT") go to the
// command, which ends with the status.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: interrupt SIGNALS file status command…")
	}
	want, err := strconv.Atoi(args[2])
	ts.Check(err)
	path, err := exec.LookPath(filepath.Join(bin, args[3]))
	ts.Check(err)
	cmd := exec.Command(path, args[4:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environ(ts)
	var out said
	cmd.Stdout, cmd.Stderr = &out, &out
	ts.Check(cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	up := func() bool { return out.String() != "" }
	if args[1] != "-" {
		up = func() bool { _, err := os.Stat(ts.MkAbs(args[1])); return err == nil }
	}
	if !await(60*time.Second, up) {
		cmd.Process.Kill()
		ts.Fatalf("%s never came; output: %s", args[1], out.String())
	}
	signals := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT, "USR1": syscall.SIGUSR1}
	for i, s := range strings.Split(args[0], ",") {
		if i > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		ts.Check(cmd.Process.Signal(signals[s]))
	}
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		cmd.Process.Kill()
		ts.Fatalf("did not end; output: %s", out.String())
	}
	ts.Logf("%s", out.String())
	got := cmd.ProcessState.ExitCode()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		got = 128 + int(ws.Signal())
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}

func environ(ts *testscript.TestScript) []string {
	var env []string
	for _, k := range []string{"BANGER_HOME", "BANGER_DATA_DIR", "BANGER_CACHE_DIR", "HOME", "PATH", "LANG", "TERM"} {
		if v := ts.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// kill9 FILE: once the file exists, the story's daemon is killed.
func kill9(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: kill9 [file]")
	}
	if len(args) == 1 && !await(20*time.Second, func() bool { _, err := os.Stat(ts.MkAbs(args[0])); return err == nil }) {
		ts.Fatalf("%s never came", args[0])
	}
	cmd := exec.Command(filepath.Join(bin, "banger"), "daemon", "status", "--json")
	cmd.Env = environ(ts)
	out, err := cmd.Output()
	ts.Check(err)
	_, rest, _ := strings.Cut(string(out), `"pid": `)
	num, _, _ := strings.Cut(rest, ",")
	pid, err := strconv.Atoi(num)
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
}

// eventually [!] COMMAND…: the command succeeds (or fails) within ten seconds.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	var err error
	if !await(10*time.Second, func() bool { err = ts.Exec(args[0], args[1:]...); return (err == nil) != neg }) {
		ts.Fatalf("still not so: %v", err)
	}
}

func await(d time.Duration, cond func() bool) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return true
		}
	}
	return cond()
}
