package fsx_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/fsx"
)

func entries(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func TestWriteFileReplacesWholeAndSetsMode(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for _, c := range []struct {
		data string
		mode os.FileMode
	}{{"one", 0o644}, {"", 0o600}, {"three", 0o755}} {
		if err := fsx.WriteFile(p, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(p)
		if err != nil || string(got) != c.data {
			t.Fatalf("read %q, %v; want %q", got, err, c.data)
		}
		if st, _ := os.Stat(p); st.Mode() != c.mode {
			t.Errorf("mode %v, want %v", st.Mode(), c.mode)
		}
	}
	if got := entries(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestWriteFileFailureLeavesOldContent(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(p, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := fsx.WriteFile(p, []byte("x"), 0o644); err == nil {
		t.Fatal("a directory was replaced by a file")
	}
	if got := entries(t, dir); len(got) != 1 || got[0] != "d" {
		t.Errorf("left behind: %v", got)
	}
}

func TestDiscardAfterCommitKeepsFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	f, err := fsx.CreateTemp(p, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := f.Discard(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Error(err)
	}
}

func TestWriteBeneathStaysInside(t *testing.T) {
	base := t.TempDir()
	dir, out := filepath.Join(base, "in"), filepath.Join(base, "out")
	for _, d := range []string{dir, out} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := fsx.WriteBeneath(dir, "a/b/c", strings.NewReader("hi"), 0o640); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "a/b/c")); string(b) != "hi" {
		t.Fatalf("content %q", b)
	}
	if err := os.Symlink(out, filepath.Join(dir, "esc")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../out/x", "esc/x", "/etc/x", "a/../../out/x"} {
		if err := fsx.WriteBeneath(dir, name, strings.NewReader("x"), 0o600); err == nil {
			t.Errorf("%q was written", name)
		}
	}
	if got := entries(t, out); len(got) != 0 {
		t.Errorf("written outside: %v", got)
	}
}

func TestLockExcludesAndWaits(t *testing.T) {
	p := filepath.Join(t.TempDir(), "l")
	l, err := fsx.Lock(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsx.TryLock(p); !errors.Is(err, fsx.ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := fsx.Lock(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waiting ended with %v", err)
	}
	got := make(chan error, 1)
	go func() {
		l2, err := fsx.Lock(t.Context(), p)
		if err == nil {
			err = l2.Unlock()
		}
		got <- err
	}()
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestLockDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "l")
	if err := os.Symlink(filepath.Join(dir, "victim"), p); err != nil {
		t.Fatal(err)
	}
	if _, err := fsx.TryLock(p); err == nil {
		t.Fatal("followed a symbolic link")
	}
	if _, err := os.Lstat(filepath.Join(dir, "victim")); err == nil {
		t.Fatal("made the link's target")
	}
}

func TestCopySparseKeepsContentAndHoles(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "s"), filepath.Join(dir, "d")
	f, err := os.OpenFile(src, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 5 << 20, 40<<20 + 17} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(off>>20) + 1}, 9000), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := fsx.CopySparse(t.Context(), src, dst); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(src)
	b, _ := os.ReadFile(dst)
	if !bytes.Equal(a, b) {
		t.Error("content differs")
	}
	if n, err := fsx.Allocated(dst); err != nil || n > 1<<20 {
		t.Errorf("copy takes %d bytes on disk, %v", n, err)
	}
	if st, _ := os.Stat(dst); st.Mode() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
	if err := fsx.CopySparse(t.Context(), src, dst); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwrote: %v", err)
	}
}

func TestCopySparseCancelledLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "s")
	if err := os.WriteFile(src, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := fsx.CopySparse(ctx, src, filepath.Join(dir, "d"))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := entries(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestFreeSpace(t *testing.T) {
	if n, err := fsx.FreeSpace(t.TempDir()); err != nil || n <= 0 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := fsx.FreeSpace("/nonexistent/x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if !fsx.IsFull(&os.PathError{Op: "write", Err: unix.ENOSPC}) || fsx.IsFull(os.ErrExist) {
		t.Error("IsFull")
	}
}
