package launch_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/launch"
	"github.com/banger-dev/banger/internal/proc"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Verb {
		os.Exit(launch.Main())
	}
	os.Exit(m.Run())
}

const marker = "banger-vm:launch-test:/nowhere"

// start launches a shell script and gives what it printed and its end.
func start(t *testing.T, spec launch.Spec, files ...*os.File) (string, proc.Exit) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd, err := launch.Command([]string{exe, launch.Verb}, marker, spec, files)
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Stdin.Close()
	cmd.Stdout, cmd.Stderr = out, out
	p, err := proc.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		p.Kill(ctx)
		t.Fatal(err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b), p.Exit()
}

func shell(script string) launch.Spec {
	return launch.Spec{Path: "/bin/sh", Args: []string{"a name", "-c", script}, Env: []string{"ONLY=this"}}
}

func status(t *testing.T, out, key string) string {
	t.Helper()
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("no %s in %q", key, out)
	return ""
}

func TestNothingIsLeftToTheProgram(t *testing.T) {
	out, exit := start(t, shell(`cat /proc/self/status; cat; exit 3`))
	if want := (proc.Exit{Known: true, Code: 3}); exit != want {
		t.Errorf("exit %+v, want %+v", exit, want)
	}
	for key, want := range map[string]string{
		"NoNewPrivs": "1", "CapEff": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16),
		"CapInh": strings.Repeat("0", 16), "CapAmb": strings.Repeat("0", 16), "Umask": "0077",
	} {
		if got := status(t, out, key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

func TestDescriptorsEnvironmentAndLimits(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	spec := shell(`for i in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$i ] || printf "$i "; done; echo; readlink /proc/$$/fd/0; echo "$0"; ulimit -Sn; ulimit -Hc; env | grep -v -e ^PWD -e ^_ -e ^SHLVL -e ^OLDPWD; tr '\0' ' ' </proc/$$/cmdline | head -c 7`)
	spec.Rlimits = []proc.Rlimit{{Resource: unix.RLIMIT_NOFILE, Value: 99}, {Resource: unix.RLIMIT_CORE, Value: 0}}
	out, exit := start(t, spec, f, f)
	lines := strings.Split(out, "\n")
	want := []string{"0 1 2 3 4 ", "/dev/null", "a name", "99", "0", "ONLY=this", "a name "}
	if exit.Code != 0 || strings.Join(lines, "|") != strings.Join(want, "|") {
		t.Errorf("exit %+v, got %q, want %q", exit, lines, want)
	}
}

func TestSecretsStayOutOfArgv(t *testing.T) {
	spec := shell("exit 0")
	spec.Env = []string{"SECRET=canary"}
	cmd, err := launch.Command([]string{"/bin/true", launch.Verb}, marker, spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Stdin.Close()
	if all := strings.Join(append(cmd.Args, cmd.Env...), " "); strings.Contains(all, "canary") || !strings.Contains(all, marker) {
		t.Errorf("launcher's argv and environment: %q", all)
	}
}

func TestWhatCannotRunSaysWhy(t *testing.T) {
	for name, spec := range map[string]launch.Spec{
		"no such program": {Path: "/nowhere/program", Args: []string{"x"}},
		"no arguments":    {Path: "/bin/true"},
		"relative":        {Path: "true", Args: []string{"x"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, exit := start(t, spec)
			if exit.Code != 126 || !strings.HasPrefix(out, "launch: ") || strings.Count(out, "\n") != 1 {
				t.Errorf("exit %+v, said %q", exit, out)
			}
		})
	}
}

// As root the program becomes another user; as anyone else that is refused
// before the program runs.
func TestCredential(t *testing.T) {
	spec := shell(`cat /proc/self/status`)
	spec.Credential = &proc.Credential{UID: 61234, GID: 61235, Groups: []uint32{61236}}
	out, exit := start(t, spec)
	if os.Getuid() != 0 {
		if exit.Code != 126 || !strings.Contains(out, "not permitted") {
			t.Errorf("exit %+v, said %q", exit, out)
		}
		return
	}
	want4 := func(n int) string { s := strconv.Itoa(n); return strings.Join([]string{s, s, s, s}, "\t") }
	for key, want := range map[string]string{
		"Uid": want4(61234), "Gid": want4(61235), "Groups": "61236",
		"CapEff": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16), "NoNewPrivs": "1",
	} {
		if got := status(t, out, key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

// A program that opens a file for reading and writing, and may not write to
// it, gets it as the broker has it; its other opens are its own.
func TestBroker(t *testing.T) {
	if !launch.BrokerUsable() {
		t.Skip("needs root's CAP_SYS_PTRACE; CI and `make test` as root run this")
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("content\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := launch.NewBroker("/asked/for", f)
	if err != nil {
		t.Fatal(err)
	}
	spec := shell(`
		cat <>/asked/for          # brokered
		echo more 1<>/asked/for   # opened for reading all the same
		cat <>/asked/for/else || echo not that
		echo x 1<>/dev/null && echo and others go on`)
	spec.Credential = &proc.Credential{UID: 61234, GID: 61234}
	spec.Broker = 3
	out, exit := startBrokered(t, spec, b)
	want := "content\n"
	if exit.Code != 0 || !strings.HasPrefix(out, want) || !strings.Contains(out, "not that\nand others go on\n") {
		t.Errorf("exit %+v, said %q", exit, out)
	}
	if err := b.Stop(); err != nil {
		t.Errorf("the broker: %v", err)
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "content\n" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

func startBrokered(t *testing.T, spec launch.Spec, b *launch.Broker) (string, proc.Exit) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b.Serve(ctx)
	return start(t, spec, b.Theirs())
}
