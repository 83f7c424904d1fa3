package shim

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestCapLogKeepsTheEnd(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		path := filepath.Join(t.TempDir(), "console.log")
		const limit = 1000
		l, err := openCapLog(path, limit)
		if err != nil {
			t.Fatal(err)
		}
		var all []byte
		for range 200 {
			b := make([]byte, rng.IntN(120))
			for i := range b {
				b[i] = byte('a' + rng.IntN(26))
			}
			all = append(all, b...)
			if n, err := l.Write(b); err != nil || n != len(b) {
				t.Fatal(n, err)
			}
			if rng.IntN(20) == 0 { // a new process takes the files over
				l.Close()
				if l, err = openCapLog(path, limit); err != nil {
					t.Fatal(err)
				}
			}
			cur, _ := os.ReadFile(path)
			old, _ := os.ReadFile(path + ".1")
			if len(cur)+len(old) > limit {
				t.Fatalf("seed %d: %d bytes", seed, len(cur)+len(old))
			}
			if kept := append(old, cur...); !bytes.HasSuffix(all, kept) || len(kept) < min(len(all), limit/2) {
				t.Fatalf("seed %d: kept %d of %d bytes, or not the last ones", seed, len(kept), len(all))
			}
		}
		l.Close()
	}
}

func TestCapLogFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "precious")
	if err := os.WriteFile(target, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(dir, "console.log")); err != nil {
		t.Fatal(err)
	}
	if l, err := openCapLog(filepath.Join(dir, "console.log"), 1000); err == nil {
		l.Close()
		t.Error("a symbolic link was followed")
	}
	if b, _ := os.ReadFile(target); string(b) != "data" {
		t.Error("its target changed")
	}
}
