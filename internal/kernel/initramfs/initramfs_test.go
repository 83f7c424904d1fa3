package initramfs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/initramfs"
	"github.com/banger-dev/banger/internal/kernel/kerneltest"
)

type entry struct {
	mode         uint64
	major, minor uint64
	data         string
}

// unpack reads archives one after the other as the kernel does, with zeros
// between them.
func unpack(t *testing.T, b []byte) map[string]entry {
	t.Helper()
	out := map[string]entry{}
	for off := 0; off < len(b); {
		if b[off] == 0 {
			off++
			continue
		}
		if off%4 != 0 || string(b[off:off+6]) != "070701" {
			t.Fatalf("no header at %d", off)
		}
		f := func(i int) uint64 {
			v, err := strconv.ParseUint(string(b[off+6+8*i:off+14+8*i]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		size, nameLen := int(f(6)), int(f(11))
		name := string(b[off+110 : off+110+nameLen-1])
		data := (off + 110 + nameLen + 3) &^ 3
		if name != "TRAILER!!!" {
			out[name] = entry{f(1), f(9), f(10), string(b[data : data+size])}
		}
		off = (data + size + 3) &^ 3
	}
	return out
}

func stored(t *testing.T) kernel.Kernel {
	t.Helper()
	s, err := kernel.Open(t.TempDir(), kerneltest.Recipes(), &kerneltest.Source{Release: "6.1-x"})
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.Ensure(t.Context(), "test-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func write(t *testing.T, name, s string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(s), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestArchiveHoldsAgentAndModules(t *testing.T) {
	k, dir := stored(t), t.TempDir()
	p, err := initramfs.Build(t.Context(), k, write(t, "agent", "the agent"), dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	got := unpack(t, b)
	if e := got["init"]; e.data != "the agent" || e.mode != 0o100755 {
		t.Errorf("init: %+v", e)
	}
	if e := got["dev/console"]; e.mode != 0o020600 || e.major != 5 || e.minor != 1 {
		t.Errorf("console: %+v", e)
	}
	list := strings.Fields(got["banger/modules"].data)
	if strings.Join(list, " ") != "/banger/ko/virtio.ko /banger/ko/virtio_net.ko" {
		t.Errorf("modules: %q", list)
	}
	for _, m := range list {
		want, err := os.ReadFile(filepath.Join(k.BootModules, filepath.Base(m)))
		if err != nil || got[m[1:]].data != string(want) {
			t.Errorf("%s differs: %v", m, err)
		}
	}
	// The same again is the same file; another agent is another.
	st1, _ := os.Stat(p)
	again, err := initramfs.Build(t.Context(), k, write(t, "copy", "the agent"), dir)
	st2, _ := os.Stat(p)
	if err != nil || again != p || !st1.ModTime().Equal(st2.ModTime()) {
		t.Errorf("again: %s, %v", again, err)
	}
	other, err := initramfs.Build(t.Context(), k, write(t, "agent", "a new agent"), dir)
	if err != nil || other == p {
		t.Errorf("another agent: %s, %v", other, err)
	}
	fresh, err := initramfs.Build(t.Context(), k, write(t, "agent", "the agent"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if fb, err := os.ReadFile(fresh); err != nil || !bytes.Equal(fb, b) {
		t.Errorf("not deterministic: %v", err)
	}
}

func TestSeedIsAppendedAndPrivate(t *testing.T) {
	k, dir := stored(t), t.TempDir()
	// Base archives of every alignment.
	for _, tail := range []string{"", "x", "xy", "xyz"} {
		base, err := initramfs.Build(t.Context(), k, write(t, "agent", "agent"+tail), dir)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := os.ReadFile(base)
		if err != nil {
			t.Fatal(err)
		}
		odd := write(t, "odd", string(plain)+strings.Repeat("\x00", len(tail)))
		dst := filepath.Join(t.TempDir(), "initrd")
		if err := initramfs.WithSeed(t.Context(), odd, dst, []byte(`{"token":"t"}`)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(dst)
		if err != nil {
			t.Fatal(err)
		}
		got := unpack(t, b)
		if e := got["banger/seed.json"]; e.data != `{"token":"t"}` || e.mode != 0o100600 {
			t.Errorf("%q: seed %+v", tail, e)
		}
		if got["init"].data != "agent"+tail {
			t.Errorf("%q: init %q", tail, got["init"].data)
		}
		if st, err := os.Stat(dst); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		if now, err := os.ReadFile(base); err != nil || !bytes.Equal(now, plain) {
			t.Errorf("the base changed: %v", err)
		}
		if err := initramfs.WithSeed(t.Context(), odd, dst, nil); err == nil {
			t.Error("an existing file was overwritten")
		} else if b2, _ := os.ReadFile(dst); !bytes.Equal(b, b2) {
			t.Error("an existing file was touched")
		}
	}
}

func TestFailuresLeaveNoFile(t *testing.T) {
	k, dir := stored(t), t.TempDir()
	if _, err := initramfs.Build(t.Context(), k, "/nonexistent/agent", dir); err == nil {
		t.Error("no agent: accepted")
	}
	if err := os.WriteFile(filepath.Join(k.BootModules, kernel.OrderFile), []byte("../../etc/passwd\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := initramfs.Build(t.Context(), k, write(t, "agent", "a"), dir); err == nil {
		t.Error("a path in the order: accepted")
	}
	dst := filepath.Join(dir, "initrd")
	if err := initramfs.WithSeed(t.Context(), "/nonexistent", dst, nil); err == nil {
		t.Error("no base: accepted")
	}
	if err := initramfs.WithSeed(t.Context(), "/dev/null", dst, make([]byte, initramfs.MaxSeed+1)); err == nil {
		t.Error("a large seed: accepted")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
