package disk_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/banger-dev/banger/internal/disk"
	"github.com/banger-dev/banger/internal/errs"
)

// e2fsck fails the test unless the file system at path is without fault.
func e2fsck(t *testing.T, path string) {
	t.Helper()
	cmd := exec.Command("e2fsck", "-fn", path)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func TestMakeGivesSoundSparseDisks(t *testing.T) {
	dir := t.TempDir()
	for name, m := range map[string]*disk.Maker{"cached": {Cache: filepath.Join(dir, "cache")}, "plain": {}} {
		t.Run(name, func(t *testing.T) {
			p := filepath.Join(dir, name)
			if err := m.Make(t.Context(), p, 256<<20, "banger-work"); err != nil {
				t.Fatal(err)
			}
			e2fsck(t, p)
			st, err := os.Stat(p)
			if err != nil || st.Size() != 256<<20 || st.Mode() != 0o600 {
				t.Errorf("%v, %v", st, err)
			}
			if n, err := disk.Usage(p); err != nil || n > 16<<20 || n == 0 {
				t.Errorf("takes %d bytes, %v", n, err)
			}
			if err := m.Make(t.Context(), p, 256<<20, "banger-work"); errs.CodeOf(err) != "disk_exists" {
				t.Errorf("second make: %v", err)
			}
		})
	}
	if sum(t, filepath.Join(dir, "cached")) != sum(t, filepath.Join(dir, "plain")) {
		t.Error("two disks of one kind differ")
	}
}

func TestLabelsGiveDifferentUUIDs(t *testing.T) {
	dir := t.TempDir()
	uuids := map[string]bool{}
	for _, label := range []string{"banger-work", "banger-system"} {
		p := filepath.Join(dir, label)
		if err := (&disk.Maker{}).Make(t.Context(), p, disk.MinSize, label); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 2048)
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.ReadAt(b, 0)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(bytes.TrimRight(b[1024+0x78:1024+0x88], "\x00")); got != label {
			t.Errorf("label %q, want %q", got, label)
		}
		uuids[string(b[1024+0x68:1024+0x78])] = true
	}
	if len(uuids) != 2 {
		t.Error("two labels, one UUID")
	}
}

func TestMakeAtOnce(t *testing.T) {
	dir := t.TempDir()
	m := &disk.Maker{Cache: filepath.Join(dir, "cache")}
	var wg sync.WaitGroup
	for _, n := range strings.Fields("a b c d e f") {
		wg.Go(func() {
			if err := m.Make(t.Context(), filepath.Join(dir, n), disk.MinSize, "x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	e2fsck(t, filepath.Join(dir, "f"))
}

func TestGrow(t *testing.T) {
	p := filepath.Join(t.TempDir(), "d")
	if err := (&disk.Maker{}).Make(t.Context(), p, disk.MinSize, "w"); err != nil {
		t.Fatal(err)
	}
	if err := disk.Grow(p, 2*disk.MinSize); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(p); st.Size() != 2*disk.MinSize {
		t.Errorf("size %d", st.Size())
	}
	e2fsck(t, p)
	if err := disk.Grow(p, disk.MinSize); errs.CodeOf(err) != "disk_shrink" {
		t.Errorf("shrinking: %v", err)
	}
	if err := disk.Grow(p+"x", disk.MinSize); errs.KindOf(err) != errs.NotFound {
		t.Errorf("missing: %v", err)
	}
}

func TestBadInputLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name, code string
		m          disk.Maker
		ctx        context.Context
		size       int64
		label      string
	}{
		{name: "too small", code: "disk_size", size: 0},
		{name: "negative", code: "disk_size", size: -1},
		{name: "too large", code: "disk_size", size: 1 << 60},
		{name: "long label", code: "disk_label", size: disk.MinSize, label: strings.Repeat("x", 17)},
		{name: "no mke2fs", code: "disk_format", size: disk.MinSize, m: disk.Maker{MkfsBin: "/nonexistent/mke2fs"}},
		{name: "mke2fs fails", code: "disk_format", size: disk.MinSize, m: disk.Maker{MkfsBin: "/bin/false"}},
		{name: "cancelled", code: "cancelled", size: disk.MinSize, ctx: cancelled},
	} {
		ctx := c.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		err := c.m.Make(ctx, filepath.Join(dir, "d"), c.size, c.label)
		if errs.CodeOf(err) != c.code {
			t.Errorf("%s: %v (code %s, want %s)", c.name, err, errs.CodeOf(err), c.code)
		}
	}
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Errorf("left behind: %v", es)
	}
}
