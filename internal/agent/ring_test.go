package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/banger-dev/banger/internal/guest/wire"
)

// TestTheRingIsAWindowOnAStream compares the ring with the whole stream.
func TestTheRingIsAWindowOnAStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r ring
		var whole []byte
		acked := 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				p := bytes.Repeat([]byte{byte(len(whole))}, rapid.IntRange(0, 300_000).Draw(t, "size"))
				n := r.write(p)
				if n != min(len(p), wire.OutputRing-(len(whole)-acked)) {
					t.Fatalf("took %d of %d", n, len(p))
				}
				whole = append(whole, p[:n]...)
			case 1:
				off := rapid.IntRange(0, len(whole)+10).Draw(t, "ack")
				if ok := r.ack(uint64(off)); ok != (off > acked && off <= len(whole)) {
					t.Fatalf("ack of %d: %v", off, ok)
				} else if ok {
					acked = off
				}
			case 2:
				off := rapid.IntRange(0, len(whole)+10).Draw(t, "off")
				p := make([]byte, rapid.IntRange(0, 50_000).Draw(t, "len"))
				n := r.peek(uint64(off), p)
				if off < acked || off > len(whole) {
					if n != 0 {
						t.Fatalf("gave what it has not: %d at %d", n, off)
					}
				} else if want := whole[off:min(len(whole), off+len(p))]; !bytes.Equal(p[:n], want) {
					t.Fatalf("other bytes at %d", off)
				}
			}
			if r.base != uint64(acked) || r.end() != uint64(len(whole)) {
				t.Fatalf("holds %d to %d, not %d to %d", r.base, r.end(), acked, len(whole))
			}
		}
	})
}

func TestTheGuestsOwnEnvironmentIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "environment")
	os.WriteFile(path, []byte("# comment\nA=1\n  export B=\"two words\"\nC='x=y'\nnonsense\n=\nA=2\nD=\n"), 0o644)
	e := &environ{values: map[string]string{}}
	readEnvironment(e, path)
	e.set("bad=name", "x")
	e.set("bad", "zero\x00")
	want := []string{"A=2", "B=two words", "C=x=y", "D="}
	if got := e.list(); len(got) != len(want) {
		t.Fatalf("%q", got)
	} else {
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%q, not %q", got[i], want[i])
			}
		}
	}
}

func TestMiseIsAskedOnlyWhereItsFilesAre(t *testing.T) {
	root := t.TempDir()
	sub := filepath.Join(root, "a", "b")
	os.MkdirAll(sub, 0o755)
	if key := miseKey(sub, root); key != "" {
		t.Errorf("key %q without files", key)
	}
	os.WriteFile(filepath.Join(root, ".tool-versions"), []byte("go 1.26\n"), 0o644)
	first := miseKey(sub, root)
	os.WriteFile(filepath.Join(root, ".tool-versions"), []byte("go 1.26.8\n"), 0o644)
	if second := miseKey(sub, root); first == "" || first == second {
		t.Errorf("a changed file has the same key: %q", second)
	}
	if got, err := parseMise([]byte(`{"PATH":"/x:/y","A":"q\"z"}`)); err != nil || len(got) != 2 {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "[]", `{"A":1}`} {
		if _, err := parseMise([]byte(bad)); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

func TestUsersComeFromTheGuestsFiles(t *testing.T) {
	u, err := lookupUser("root")
	if err != nil || u.name != "root" || u.credential != nil && os.Geteuid() == 0 {
		t.Errorf("%+v %v", u, err)
	}
	if _, err := lookupUser("no-such-user"); err == nil {
		t.Error("found nobody")
	}
}
