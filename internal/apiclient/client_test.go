package apiclient_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/errs"
)

func TestFailuresKeepKindCodeAndHint(t *testing.T) {
	d := newFakeDaemon(t)
	_, err := d.client().VMs.Get(t.Context(), connect.NewRequest(&bangerv1.VMRef{Vm: "wbe"}))
	if errs.KindOf(err) != errs.NotFound || errs.CodeOf(err) != "vm_not_found" || errs.HintOf(err) != `did you mean "web"?` || err.Error() != `no VM named "wbe"` {
		t.Errorf("%#v", err)
	}
}

func TestNobodyListening(t *testing.T) {
	for _, socket := range []string{filepath.Join(t.TempDir(), "none", "s"), staleSocket(t)} {
		c := apiclient.New(apiclient.Options{Socket: socket})
		_, err := c.Connect(t.Context())
		if errs.CodeOf(err) != "daemon_not_running" || errs.KindOf(err) != errs.Unavailable || !apiclient.Lost(err) {
			t.Errorf("%v", err)
		}
	}
}

func staleSocket(t *testing.T) string {
	d := newFakeDaemon(t)
	d.kill()
	if _, err := os.Stat(d.socket); err != nil {
		// net/http unlinks what it listened on; make the state of kill -9
		if err := os.WriteFile(d.socket, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d.socket
}

func TestADaemonOfAnotherContractIsRefusedWithWhatToDo(t *testing.T) {
	for api, hint := range map[uint32]string{buildinfo.API - 1: "banger daemon stop", buildinfo.API + 1: "/opt/bangerd"} {
		d := newFakeDaemon(t)
		d.api = api
		_, err := d.client().Connect(t.Context())
		if errs.CodeOf(err) != "api_mismatch" || !strings.Contains(errs.HintOf(err), hint) {
			t.Errorf("api %d: %v (%s)", api, err, errs.HintOf(err))
		}
	}
}

func TestADaemonIsStartedWhenNoneAnswers(t *testing.T) {
	d := newFakeDaemon(t)
	d.kill()
	os.Remove(d.socket)
	started := 0
	c := apiclient.New(apiclient.Options{Socket: d.socket, Start: func(context.Context) (*apiclient.Starting, error) {
		started++
		go d.start()
		return &apiclient.Starting{}, nil
	}})
	defer c.Close()
	for range 3 {
		if info, err := c.Connect(within(t, 5*time.Second)); err != nil || info.GetVersion() != "9.9" {
			t.Fatalf("%v, %v", info, err)
		}
	}
	if started != 1 {
		t.Errorf("started %d times", started)
	}
}

func TestADaemonThatIsJustEndingIsFollowedByAnother(t *testing.T) {
	d := newFakeDaemon(t)
	d.kill()
	os.Remove(d.socket)
	started := 0
	c := apiclient.New(apiclient.Options{Socket: d.socket, Start: func(context.Context) (*apiclient.Starting, error) {
		started++
		ended := make(chan string, 1)
		if started < 3 {
			ended <- "" // the lock is still held
		} else {
			go d.start()
		}
		return &apiclient.Starting{Ended: ended}, nil
	}})
	defer c.Close()
	if _, err := c.Connect(within(t, 5*time.Second)); err != nil || started != 3 {
		t.Errorf("%v after %d starts", err, started)
	}
}

func TestADaemonThatCannotStartIsExplained(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "state", "bangerd.log")
	program := func(text string) func() (string, error) {
		p := filepath.Join(dir, "bangerd")
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
		return func() (string, error) { return p, nil }
	}
	for _, c := range []struct {
		name, text, code, hint string
		budget                 time.Duration
	}{
		{"ends", "echo 'the database is newer than this bangerd' >&2; exit 3", "daemon_start_failed", "last line of its log: the database is newer than this bangerd\nless " + log, 0},
		{"hangs", "exec sleep 2", "daemon_start_timeout", "less " + log, 200 * time.Millisecond},
		{"another holds the lock and never answers", "exit 0", "daemon_start_timeout", "less " + log, 200 * time.Millisecond},
	} {
		cl := apiclient.New(apiclient.Options{Socket: filepath.Join(dir, "s"), Log: log, StartBudget: c.budget, Start: apiclient.StartDaemon(program(c.text), log)})
		_, err := cl.Connect(t.Context())
		if errs.CodeOf(err) != c.code || errs.HintOf(err) != c.hint {
			t.Errorf("%s: %v\n%s", c.name, err, errs.HintOf(err))
		}
	}
	if st, err := os.Stat(log); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the log: %v, %v", st, err)
	}
}

func TestWhereTheDaemonIsFound(t *testing.T) {
	dir := t.TempDir()
	put := func(parts ...string) string {
		p := filepath.Join(append([]string{dir}, parts...)...)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o700); err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Setenv("PATH", filepath.Join(dir, "path"))
	self, prefix := put("own", "banger"), filepath.Join(dir, "prefix")
	if _, err := apiclient.FindDaemon(self, prefix); errs.CodeOf(err) != "daemon_not_installed" || errs.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	for _, at := range []string{"path", "prefix/bin", "own"} {
		want := put(at, "bangerd")
		if got, err := apiclient.FindDaemon(self, prefix); err != nil || got != want {
			t.Errorf("found %s, %v; want %s", got, err, want)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	if got, _ := apiclient.FindDaemon(link, "/nowhere"); filepath.Dir(got) != filepath.Join(dir, "own") {
		t.Errorf("through a link: %s", got)
	}
}

func TestTheDaemonDoesNotInheritTheShellsSecrets(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("GITHUB_TOKEN", "canary-8412")
	t.Setenv("BANGER_HOME", dir)
	p, out := filepath.Join(dir, "bangerd"), filepath.Join(dir, "env")
	if err := os.WriteFile(p, []byte("#!/bin/sh\nenv > "+out+".tmp; ps -o sid= -p $$ > "+out+".sid; pwd >> "+out+".tmp; mv "+out+".tmp "+out+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := apiclient.StartDaemon(func() (string, error) { return p, nil }, filepath.Join(dir, "log"))(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if how := <-s.Ended; how != "" {
		t.Fatal(how)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "canary") || !strings.Contains(string(b), "BANGER_HOME="+dir) || !strings.HasSuffix(string(b), "\n/\n") {
		t.Errorf("its environment and directory:\n%s", b)
	}
}
