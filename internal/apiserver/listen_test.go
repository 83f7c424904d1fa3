package apiserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

func private(t *testing.T) string {
	t.Helper()
	d := t.TempDir()
	if err := os.Chmod(d, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func TestTheSocketIsTheOwnersFromBirth(t *testing.T) {
	path := filepath.Join(private(t), "run", "d.sock")
	l, err := Listen(path, os.Getuid(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Perm() != 0o600 || st.Mode()&os.ModeSocket == 0 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	if st, err = os.Stat(filepath.Dir(path)); err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the socket is left behind")
	}
}

func TestAStaleSocketIsReplacedAndAFileIsNot(t *testing.T) {
	dir := private(t)
	path := filepath.Join(dir, "d.sock")
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	old.Close()
	l, err := Listen(path, os.Getuid(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, os.Getuid(), quiet); errs.CodeOf(err) != "socket_taken" {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Fatal("the file is gone")
	}
}

func TestHostileDirectoriesAreRefused(t *testing.T) {
	base := private(t)
	open := filepath.Join(base, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(open, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, code := range map[string]string{open: "dir_open", link: "dir_hostile", file: "dir_unusable"} {
		err := PrivateDir(dir, os.Getuid())
		if errs.CodeOf(err) != code || errs.KindOf(err) != errs.Denied {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := PrivateDir(private(t), os.Getuid()+1); errs.CodeOf(err) != "dir_hostile" {
		t.Errorf("another's directory: %v", err)
	}
	if err := PrivateDir(filepath.Join(base, "new", "deep"), os.Getuid()); err != nil {
		t.Error(err)
	}
}

func TestALongPathIsRefusedWithWords(t *testing.T) {
	_, err := Listen(filepath.Join("/", strings.Repeat("x", 120), "s"), os.Getuid(), quiet)
	if errs.CodeOf(err) != "socket_path_long" || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
}

func TestEveryKindReachesTheCaller(t *testing.T) {
	for _, k := range errs.Kinds() {
		in := errs.New(k, "some_code", "some words").WithHint("do this")
		ce := toConnect(in)
		var f *bangerv1.Failure
		for _, d := range ce.Details() {
			if v, err := d.Value(); err == nil {
				f, _ = v.(*bangerv1.Failure)
			}
		}
		if f.GetKind() != string(k) || f.GetCode() != "some_code" || f.GetHint() != "do this" || f.GetMessage() != "some words" {
			t.Errorf("%s: %+v", k, f)
		}
		if (ce.Code() == connect.CodeInternal) != (k == errs.Internal) {
			t.Errorf("%s became %s", k, ce.Code())
		}
	}
}

func TestAStreamOfMessagesReadsAsOne(t *testing.T) {
	parts := [][]byte{[]byte("ab"), nil, []byte("cde")}
	r := &received{next: func() ([]byte, error) {
		if len(parts) == 0 {
			return nil, io.EOF
		}
		p := parts[0]
		parts = parts[1:]
		return p, nil
	}}
	if b, err := io.ReadAll(r); err != nil || string(b) != "abcde" {
		t.Fatalf("%q, %v", b, err)
	}
	var sizes []int
	n, err := sender(func(b []byte) error { sizes = append(sizes, len(b)); return nil }).Write(make([]byte, chunk+1))
	if n != chunk+1 || err != nil || len(sizes) != 2 || sizes[1] != 1 {
		t.Fatalf("%d, %v, %v", n, err, sizes)
	}
	if unlessGone(context.Background(), context.Canceled) == nil {
		t.Fatal("an error of a caller that is there was dropped")
	}
}
