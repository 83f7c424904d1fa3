package kmod_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"github.com/banger-dev/banger/internal/kernel/kerneltest"
	"github.com/banger-dev/banger/internal/kernel/kmod"
)

func signed(m []byte) []byte {
	m = append(bytes.Clone(m), "signature bytes"...)
	m = append(m, make([]byte, 8)...)
	m = binary.BigEndian.AppendUint32(m, 15)
	return append(m, "~Module signature appended~\n"...)
}

func TestModuleSaysWhatItNeeds(t *testing.T) {
	in, err := kmod.Parse(kerneltest.Module("license=GPL\x00depends=net-failover,b\x00alias=virtio:d1v*\x00alias=bad\nalias\x00softdep=pre: x\x00", "one", "two"))
	want := kmod.Info{Depends: []string{"net_failover", "b"}, Aliases: []string{"virtio:d1v*"}, Softdeps: []string{"pre: x"}, Symbols: []string{"one", "two"}}
	if err != nil || !reflect.DeepEqual(in, want) {
		t.Errorf("got %+v, %v; want %+v", in, err, want)
	}
	for _, bad := range [][]byte{nil, []byte("\x7fELF"), bytes.Repeat([]byte{1}, 500)} {
		if _, err := kmod.Parse(bad); !errors.Is(err, kmod.ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestStripSignature(t *testing.T) {
	m := kerneltest.Module("depends=\x00")
	if got := kmod.StripSignature(signed(m)); !bytes.Equal(got, m) {
		t.Errorf("%d bytes left of %d", len(got), len(m))
	}
	lie := signed(m)
	binary.BigEndian.PutUint32(lie[len(lie)-32:], 1<<30)
	for name, b := range map[string][]byte{"unsigned": m, "lying": lie, "short": []byte("~Module signature appended~\n")} {
		if got := kmod.StripSignature(b); !bytes.Equal(got, b) {
			t.Errorf("%s: was changed", name)
		}
	}
}

// tree lays a small module tree out, one module compressed.
func tree(t *testing.T, files map[string][]byte) string {
	t.Helper()
	root := t.TempDir()
	for name, b := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".xz") {
			var z bytes.Buffer
			w, err := xz.NewWriter(&z)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			b = z.Bytes()
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func sample(t *testing.T) *kmod.Tree {
	t.Helper()
	root := tree(t, map[string][]byte{
		"kernel/net/a.ko.xz":      kerneltest.Module("depends=b,c\x00alias=x-y[a-z]*\x00", "fa"),
		"kernel/net/b.ko":         kerneltest.Module("depends=c\x00softdep=pre: d\x00", "fb"),
		"kernel/lib/c.ko":         kerneltest.Module("depends=\x00alias=devname:net/tun\x00alias=char-major-10-200\x00"),
		"modules.order":           []byte("kernel/lib/c.ko\nkernel/net/b.ko\nkernel/net/a.ko\n"),
		"modules.builtin":         []byte("kernel/fs/ext4/ext4.ko\n"),
		"modules.builtin.modinfo": []byte("ext4.alias=fs-ext4\x00ext4.license=GPL\x00"),
	})
	tr, err := kmod.ReadTree(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestLoadOrderPutsNeedsFirst(t *testing.T) {
	tr := sample(t)
	list, err := tr.LoadOrder([]string{"ext4", "a", "b"}, map[string]bool{"ext4": true})
	var names []string
	for _, m := range list {
		names = append(names, m.Name)
	}
	if err != nil || strings.Join(names, " ") != "c b a" {
		t.Errorf("got %v, %v; want c b a", names, err)
	}
	if _, err := tr.LoadOrder([]string{"gone"}, nil); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a missing module: %v", err)
	}
}

func TestCircleIsAnErrorNotALoop(t *testing.T) {
	root := tree(t, map[string][]byte{"a.ko": kerneltest.Module("depends=b\x00"), "b.ko": kerneltest.Module("depends=a\x00")})
	tr, err := kmod.ReadTree(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.LoadOrder([]string{"a"}, nil); !errors.Is(err, kmod.ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func TestIndexesSayWhatModprobeNeeds(t *testing.T) {
	tr := sample(t)
	if err := tr.WriteIndexes(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"modules.dep":     "kernel/lib/c.ko:\nkernel/net/b.ko: kernel/lib/c.ko\nkernel/net/a.ko.xz: kernel/net/b.ko kernel/lib/c.ko\n",
		"modules.devname": "# Device nodes to trigger on-demand module loading.\nc net/tun c10:200\n",
		"modules.softdep": "# Soft dependencies extracted from modules themselves.\nsoftdep b pre: d\n",
	} {
		b, err := os.ReadFile(filepath.Join(tr.Root, name))
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", name, b, err, want)
		}
	}
	for _, c := range []struct{ file, key, want string }{
		{"modules.dep.bin", "a", "kernel/net/a.ko.xz: kernel/net/b.ko kernel/lib/c.ko"},
		{"modules.alias.bin", "x_y[a-z]*", "a"},
		{"modules.symbols.bin", "symbol:fb", "b"},
		{"modules.builtin.bin", "ext4", ""},
		{"modules.builtin.alias.bin", "fs_ext4", "ext4"},
	} {
		b, err := os.ReadFile(filepath.Join(tr.Root, c.file))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := lookup(t, b, c.key); !ok || got != c.want {
			t.Errorf("%s: %q is %q, %v; want %q", c.file, c.key, got, ok, c.want)
		}
		if _, ok := lookup(t, b, c.key+"x"); ok {
			t.Errorf("%s: finds what is not there", c.file)
		}
	}
}

// lookup walks the binary index as libkmod does and gives the first value.
func lookup(t *testing.T, b []byte, key string) (string, bool) {
	t.Helper()
	be := binary.BigEndian
	if be.Uint32(b) != 0xb007f457 || be.Uint32(b[4:]) != 0x00020001 {
		t.Fatal("wrong magic or version")
	}
	str := func(off uint32) (string, uint32) {
		n := uint32(bytes.IndexByte(b[off:], 0))
		return string(b[off : off+n]), off + n + 1
	}
	node := be.Uint32(b[8:])
	for {
		at := node & 0x0fffffff
		if node&0x80000000 != 0 {
			var prefix string
			prefix, at = str(at)
			rest, ok := strings.CutPrefix(key, prefix)
			if !ok {
				return "", false
			}
			key = rest
		}
		var first, last byte
		kids := at
		if node&0x20000000 != 0 {
			first, last = b[at], b[at+1]
			kids = at + 2
			at = kids + 4*(uint32(last-first)+1)
		}
		if key == "" {
			if node&0x40000000 == 0 || be.Uint32(b[at:]) == 0 {
				return "", false
			}
			v, _ := str(at + 8)
			return v, true
		}
		if node&0x20000000 == 0 || key[0] < first || key[0] > last {
			return "", false
		}
		node = be.Uint32(b[kids+4*uint32(key[0]-first):])
		if node == 0 {
			return "", false
		}
		key = key[1:]
	}
}

func FuzzParse(f *testing.F) {
	f.Add(kerneltest.Module("depends=a,b\x00alias=c\x00", "s"))
	f.Add(signed(kerneltest.Module("")))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := kmod.Parse(kmod.StripSignature(b))
		if err != nil && !errors.Is(err, kmod.ErrFormat) {
			t.Fatalf("unclassified: %v", err)
		}
		for _, a := range in.Aliases {
			if strings.ContainsAny(a, "\n\x00") {
				t.Fatalf("alias %q would break the index", a)
			}
		}
	})
}
