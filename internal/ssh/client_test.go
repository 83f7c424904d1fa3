package ssh_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	xssh "golang.org/x/crypto/ssh"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/ssh"
)

// sockEnv tells the test program, run as `banger ssh-proxy ID`, where to go.
const sockEnv = "BANGER_SSH_TEST_SOCK"

func TestMain(m *testing.M) {
	if sock := os.Getenv(sockEnv); sock != "" && len(os.Args) == 3 && os.Args[1] == "ssh-proxy" {
		c, err := net.Dial("unix", sock)
		if err != nil {
			os.Exit(1)
		}
		go func() { _, _ = io.Copy(c, os.Stdin) }()
		_, _ = io.Copy(os.Stdout, c)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// guest is an ssh server as a VM has one.
type guest struct {
	sock string
	host ssh.HostKey
}

// serve answers one user's key; a command is echoed and exits with 7.
func serve(t *testing.T, id string, user ssh.UserKey) *guest {
	t.Helper()
	hk, err := ssh.NewHostKey(id)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := xssh.ParsePrivateKey(hk.Private)
	if err != nil {
		t.Fatal(err)
	}
	conf := &xssh.ServerConfig{PublicKeyCallback: func(_ xssh.ConnMetadata, k xssh.PublicKey) (*xssh.Permissions, error) {
		if strings.TrimSpace(string(xssh.MarshalAuthorizedKey(k))) != user.Public {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	conf.AddHostKey(signer)
	g := &guest{sock: filepath.Join(t.TempDir(), "s"), host: hk}
	l, err := net.Listen("unix", g.sock)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer c.Close()
				session(c, conf)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return g
}

func session(c net.Conn, conf *xssh.ServerConfig) {
	conn, chans, reqs, err := xssh.NewServerConn(c, conf)
	if err != nil {
		return
	}
	defer conn.Close()
	go xssh.DiscardRequests(reqs)
	for nc := range chans {
		ch, creqs, err := nc.Accept()
		if err != nil {
			return
		}
		for r := range creqs {
			if r.Type != "exec" {
				_ = r.Reply(r.Type != "auth-agent-req@openssh.com", nil)
				if r.Type == "auth-agent-req@openssh.com" {
					_, _ = io.WriteString(ch, "AGENT OFFERED ")
				}
				continue
			}
			_ = r.Reply(true, nil)
			_, _ = ch.Write(r.Payload[4:])
			_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 7})
			_ = ch.Close()
		}
	}
}

func target(t *testing.T, id, public string, user ssh.UserKey) ssh.Target {
	t.Helper()
	kh, err := ssh.KnownHosts(id, public)
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "known hosts 100%")
	if err := os.WriteFile(p, kh, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return ssh.Target{ID: id, User: "root", KeyPath: user.Path, KnownHosts: p, Banger: self}
}

// enter runs the real client.
func enter(t *testing.T, tg ssh.Target, sock string, cmd ...string) (stdout, stderr string, status int) {
	t.Helper()
	args, err := tg.Args()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), program(t, "ssh"), append(append(args, "web"), cmd...)...)
	// A hostile home: its configuration must not matter.
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".ssh", "config"), []byte("Host *\n ProxyCommand false\n ForwardAgent yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Env = append(os.Environ(), sockEnv+"="+sock, "HOME="+home, "SHELL=/bin/sh")
	var out, eb bytes.Buffer
	c.Stdout, c.Stderr = &out, &eb
	err = c.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return out.String(), eb.String(), c.ProcessState.ExitCode()
}

func userKey(t *testing.T) ssh.UserKey {
	t.Helper()
	k, err := ssh.EnsureUserKey(filepath.Join(t.TempDir(), "my keys", "id_100%"), true)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRealClientEntersWithoutQuestions(t *testing.T) {
	user := userKey(t)
	g := serve(t, "aa11", user)
	out, stderr, status := enter(t, target(t, "aa11", g.host.Public, user), g.sock, ssh.QuoteCommand([]string{"sh", "-c", "exit 7", ""}))
	if out != `'sh' '-c' 'exit 7' ''` || status != 7 || stderr != "" {
		t.Errorf("stdout %q, stderr %q, status %d", out, stderr, status)
	}
}

func TestSwappedHostKeyIsRefused(t *testing.T) {
	user := userKey(t)
	own, impostor := serve(t, "aa11", user), serve(t, "aa11", user)
	tg := target(t, "aa11", own.host.Public, user)
	out, stderr, status := enter(t, tg, impostor.sock, "true")
	if status != 255 || out != "" || !strings.Contains(stderr, "HOST IDENTIFICATION HAS CHANGED") {
		t.Errorf("stdout %q, status %d, stderr %q", out, status, stderr)
	}
	// And the file still holds the right key alone.
	if b, _ := os.ReadFile(tg.KnownHosts); strings.Count(string(b), "\n") != 1 {
		t.Errorf("known_hosts is now %q", b)
	}
}

func TestNewVMOfTheSameNameGivesNoWarning(t *testing.T) {
	user := userKey(t)
	for _, id := range []string{"aa11", "bb22"} {
		g := serve(t, id, user)
		_, stderr, status := enter(t, target(t, id, g.host.Public, user), g.sock, "true")
		if status != 7 || stderr != "" {
			t.Errorf("%s: status %d, stderr %q", id, status, stderr)
		}
	}
}

func TestUnknownHostIsNotLearnt(t *testing.T) {
	user := userKey(t)
	g := serve(t, "aa11", user)
	tg := target(t, "aa11", g.host.Public, user)
	if err := os.WriteFile(tg.KnownHosts, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, status := enter(t, tg, g.sock, "true")
	if b, _ := os.ReadFile(tg.KnownHosts); status != 255 || len(b) != 0 {
		t.Errorf("status %d, stderr %q, known_hosts %q", status, stderr, b)
	}
}

func TestClientUnderstandsEveryOption(t *testing.T) {
	user := userKey(t)
	hk, err := ssh.NewHostKey("aa11")
	if err != nil {
		t.Fatal(err)
	}
	tg := target(t, "aa11", hk.Public, user)
	args, err := tg.Args()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.SplitSeq(run(t, "ssh", append([]string{"-G"}, append(args, "web")...)...), "\n") {
		k, v, _ := strings.Cut(line, " ")
		got[k] = v
	}
	for k, want := range map[string]string{
		"user": "root", "hostname": "web", "hostkeyalias": "banger-aa11", "stricthostkeychecking": "true",
		"identitiesonly": "yes", "forwardagent": "no", "forwardx11": "no", "updatehostkeys": "false",
		"passwordauthentication": "no", "kbdinteractiveauthentication": "no", "permitlocalcommand": "no",
		"hostkeyalgorithms": "ssh-ed25519", "globalknownhostsfile": "/dev/null", "controlmaster": "false",
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if !strings.Contains(got["proxycommand"], "ssh-proxy 'aa11'") {
		t.Errorf("proxycommand %q", got["proxycommand"])
	}
}

func TestValuesThatMeanSomethingElseAreRefused(t *testing.T) {
	good := ssh.Target{ID: "aa11", User: "root", KeyPath: "/k", KnownHosts: "/h", Banger: "/b"}
	if _, err := good.Options(); err != nil {
		t.Fatal(err)
	}
	good.Banger = ""
	if opts, err := good.Options(); err != nil || strings.Contains(strings.Join(opts, "\n"), "ProxyCommand") {
		t.Errorf("without a program: %v, %v", opts, err)
	}
	for _, v := range []string{"relative", "/a\nProxyCommand=evil", "/a\x00", "/a\x1b[2J", `/a"b`, "/a'b", `/a\b`, "/${HOME}"} {
		for name, tg := range map[string]ssh.Target{
			"key":    {ID: "aa11", User: "root", KeyPath: v, KnownHosts: "/h", Banger: "/b"},
			"hosts":  {ID: "aa11", User: "root", KeyPath: "/k", KnownHosts: v, Banger: "/b"},
			"banger": {ID: "aa11", User: "root", KeyPath: "/k", KnownHosts: "/h", Banger: v},
		} {
			if _, err := tg.Args(); errs.CodeOf(err) != "ssh_bad_value" {
				t.Errorf("%s %q: %v", name, v, err)
			}
		}
	}
	for _, u := range []string{"", "-oProxyCommand=x", "a b", "root\n", "%h"} {
		tg := good
		tg.User = u
		if _, err := tg.Options(); err == nil {
			t.Errorf("user %q accepted", u)
		}
	}
	for _, id := range []string{"", "a b", "a'b", "../x", "A"} {
		tg := good
		tg.ID = id
		if _, err := tg.Options(); err == nil {
			t.Errorf("id %q accepted", id)
		}
	}
}
