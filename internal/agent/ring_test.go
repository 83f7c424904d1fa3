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
	home := filepath.Dir(root)
	if key, _ := miseKey(sub, home); key != "" {
		t.Errorf("key %q without files", key)
	}
	os.WriteFile(filepath.Join(root, ".tool-versions"), []byte("go 1.26\n"), 0o644)
	first, top := miseKey(sub, home)
	os.WriteFile(filepath.Join(root, ".tool-versions"), []byte("go 1.26.8\n"), 0o644)
	if second, _ := miseKey(sub, home); first == "" || first == second || top != root {
		t.Errorf("a changed file has the same key: %q (%s)", second, top)
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

func TestMisesEnvironmentIsAskedForOnce(t *testing.T) {
	home := t.TempDir()
	repo := filepath.Join(home, "repo")
	os.MkdirAll(filepath.Join(repo, "sub"), 0o755)
	os.WriteFile(filepath.Join(repo, "mise.toml"), []byte("[tools]\n"), 0o644)
	fake, asked := filepath.Join(home, "mise"), filepath.Join(home, "asked")
	script := "#!/bin/sh\necho x >>" + asked + "\necho '{\"TOOL\":\"'$1-$MISE_TRUSTED_CONFIG_PATHS'\",\"PWD2\":\"'$PWD'\"}'\n"
	os.WriteFile(fake, []byte(script), 0o755)
	tools := toolchain{programs: []string{filepath.Join(home, "none"), fake}}
	ask := func(cwd string) *environ {
		e := &environ{values: map[string]string{}}
		e.set("PATH", defaultPath)
		for _, kv := range tools.environment(t.Context(), cwd, home, e) {
			e.set(kv.Key, kv.Value)
		}
		return e
	}
	for range 3 {
		e := ask(filepath.Join(repo, "sub"))
		if e.get("TOOL") != "env-"+repo || e.get("PWD2") != filepath.Join(repo, "sub") || e.get("MISE_TRUSTED_CONFIG_PATHS") != repo {
			t.Errorf("%q", e.list())
		}
	}
	if e := ask(home); e.get("TOOL") != "" {
		t.Errorf("asked in the home directory: %q", e.list())
	}
	if b, _ := os.ReadFile(asked); string(b) != "x\n" {
		t.Errorf("asked %d times", len(b)/2)
	}
	os.WriteFile(fake, []byte("#!/bin/sh\nexit 1\n"), 0o755)
	os.WriteFile(filepath.Join(repo, "mise.toml"), []byte("broken"), 0o644)
	if e := ask(repo); e.get("TOOL") != "" || e.get("MISE_TRUSTED_CONFIG_PATHS") != repo {
		t.Errorf("mise failed: %q", e.list())
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
