package sshd_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/banger-dev/banger/internal/agent/sshd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key makes a key pair: PEM and signer.
func key(t *testing.T) ([]byte, ssh.Signer) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), signer
}

// pair is a connected pair of sockets (a net.Pipe would not do: both sides
// begin by writing).
func pair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// connect serves one connection and logs in to it as user with the key.
func connect(t *testing.T, user string, login ssh.Signer, authorized []byte) (*ssh.Client, error) {
	t.Helper()
	hostPEM, host := key(t)
	server, client := pair(t)
	ended := make(chan error, 1)
	go func() {
		ended <- sshd.Serve(context.WithoutCancel(t.Context()), server, sshd.Config{HostKey: hostPEM, Authorized: authorized})
	}()
	t.Cleanup(func() {
		client.Close()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("the server goes on after the client left")
		}
	})
	c, channels, requests, err := ssh.NewClientConn(client, "", &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(login)}, HostKeyCallback: ssh.FixedHostKey(host.PublicKey()),
	})
	if err != nil {
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

func dial(t *testing.T) *ssh.Client {
	t.Helper()
	_, login := key(t)
	c, err := connect(t, "root", login, ssh.MarshalAuthorizedKey(login.PublicKey()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func session(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOnlyRootWithAnAuthorizedKeyGetsIn(t *testing.T) {
	_, good := key(t)
	_, other := key(t)
	line := string(ssh.MarshalAuthorizedKey(good.PublicKey()))
	for name, c := range map[string]struct {
		user       string
		login      ssh.Signer
		authorized string
		in         bool
	}{
		"the key":               {"root", good, "# comment\n\n" + line, true},
		"another key":           {"root", other, line, false},
		"another user":          {"user", good, line, false},
		"nobody authorized":     {"root", good, "", false},
		"restricted by options": {"root", good, `command="true" ` + line, false},
	} {
		client, err := connect(t, c.user, c.login, []byte(c.authorized))
		if (err == nil) != c.in {
			t.Errorf("%s: %v", name, err)
		}
		if client != nil {
			client.Close()
		}
	}
}

func TestExecKeepsStreamsAndStatusApart(t *testing.T) {
	c := dial(t)
	s := session(t, c)
	var out, errOut bytes.Buffer
	s.Stdout, s.Stderr, s.Stdin = &out, &errOut, strings.NewReader("in\n")
	if err := s.Setenv("LC_TEST", "x y"); err != nil {
		t.Error(err)
	}
	err := s.Run(`cat; echo "$LC_TEST"; echo two >&2; exit 7`)
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("exit: %v", err)
	}
	if out.String() != "in\nx y\n" || errOut.String() != "two\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
	}
	if err := session(t, c).Run("kill -9 $$"); !errors.As(err, &exit) || exit.Signal() != "KILL" {
		t.Errorf("killed: %v", err)
	}
	big, err := session(t, c).Output("head -c 5000000 /dev/zero")
	if err != nil || len(big) != 5000000 {
		t.Errorf("%d bytes, %v", len(big), err)
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	s := session(t, dial(t))
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(`trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(ssh.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 9 {
		t.Errorf("%v", err)
	}
}

func TestTerminalHasSizeAndFollowsIt(t *testing.T) {
	s := session(t, dial(t))
	if err := s.RequestPty("vt100", 30, 100, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(`stty -echo; stty size; echo $TERM; tty >/dev/null && read x; stty size; sleep 60 & exit 3`); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, len("30 100\r\nvt100\r\n"))
	if _, err := io.ReadFull(out, first); err != nil || string(first) != "30 100\r\nvt100\r\n" {
		t.Fatalf("%q, %v", first, err)
	}
	if err := s.WindowChange(40, 120); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	if string(rest) != "40 120\r\n" {
		t.Errorf("after the change: %q", rest)
	}
	// The sleep in the background must not hold the session open.
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 3 {
		t.Errorf("%v", err)
	}
}

func TestForwardingJoinsBothHalves(t *testing.T) {
	c := dial(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn) // needs the half-close
		_, _ = conn.Write(bytes.ToUpper(b))
	}()
	conn, err := c.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "HELLO" {
		t.Errorf("%q, %v", b, err)
	}
	conn.Close()
	if conn, err := c.Dial("tcp", "127.0.0.1:1"); err == nil {
		conn.Close()
		t.Error("a closed port was reached")
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("the guest listens for the client")
	}
}

func TestSFTPReadsAndWrites(t *testing.T) {
	c := dial(t)
	f, err := sftp.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(t.TempDir(), "f")
	w, err := f.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("text")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if b, err := os.ReadFile(path); err != nil || string(b) != "text" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestALostClientHangsUpItsCommands(t *testing.T) {
	c := dial(t)
	s := session(t, c)
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(`echo ready; exec sleep 300`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	c.Close() // connect's cleanup sees that the server ends
}
