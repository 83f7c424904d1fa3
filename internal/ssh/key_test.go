package ssh_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/ssh"
)

// program finds one of OpenSSH's.
func program(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here; `make test` installs OpenSSH's client and runs this", name)
	}
	return p
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func TestKeyIsMadeOnFirstNeedAndThenKept(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "conf ig", "ssh", "id_ed25519")
	k, err := ssh.EnsureUserKey(path, true)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]fs.FileMode{path: 0o600, path + ".pub": 0o600, filepath.Dir(path): 0o700} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", p, st.Mode(), err)
		}
	}
	if derived := run(t, "ssh-keygen", "-y", "-f", path); !strings.HasPrefix(derived, k.Public) || !strings.HasPrefix(k.Public, "ssh-ed25519 ") {
		t.Errorf("public %q, ssh-keygen says %q", k.Public, derived)
	}
	again, err := ssh.EnsureUserKey(path, true)
	after, _ := os.ReadFile(path)
	if err != nil || again != k || string(after) != string(before) {
		t.Errorf("the second time: %v, %v", again, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 2 {
		t.Errorf("files: %v", left)
	}
}

func TestManyAtOnceGetOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ssh", "id")
	keys := make([]ssh.UserKey, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var err error
			if keys[i], err = ssh.EnsureUserKey(path, true); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatalf("%v and %v", k, keys[0])
		}
	}
}

func TestUsersOwnKeysAreTakenAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"rsa": {"-t", "rsa", "-b", "2048", "-N", ""}, "ecdsa": {"-t", "ecdsa", "-N", ""},
		"locked": {"-t", "ed25519", "-N", "passphrase"},
	} {
		path := filepath.Join(dir, name)
		run(t, "ssh-keygen", append(args, "-q", "-f", path)...)
		pub, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		// Even without the public half beside it.
		if err := os.Remove(path + ".pub"); err != nil {
			t.Fatal(err)
		}
		k, err := ssh.EnsureUserKey(path, false)
		if err != nil || !strings.HasPrefix(string(pub), k.Public+" ") {
			t.Errorf("%s: %q, %v; want %q", name, k.Public, err, pub)
		}
		if _, err := os.Stat(path + ".pub"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file was made beside the user's key: %v", name, err)
		}
	}
}

func TestUnusableKeysAreNamedAndNotTouched(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := ssh.EnsureUserKey(good, true); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, content, code, hint string
		mode                      fs.FileMode
	}{
		{"exposed", string(b), "ssh_key_exposed", "chmod 600", 0o640},
		{"world", string(b), "ssh_key_exposed", "chmod 600", 0o604},
		{"rubbish", "hello", "ssh_key_unusable", "ssh-keygen -l", 0o600},
		{"public", "ssh-ed25519 AAAA", "ssh_key_unusable", "ssh-keygen -l", 0o600},
		{"huge", strings.Repeat("x", 70000), "ssh_key_unusable", "ssh-keygen -l", 0o600},
	}
	for _, c := range cases {
		p := filepath.Join(dir, c.name)
		if err := os.WriteFile(p, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := ssh.EnsureUserKey(p, true)
		if errs.CodeOf(err) != c.code || !strings.Contains(errs.HintOf(err), c.hint) {
			t.Errorf("%s: %v (%s), hint %q", c.name, err, errs.CodeOf(err), errs.HintOf(err))
		}
		if now, _ := os.ReadFile(p); string(now) != c.content {
			t.Errorf("%s was changed", c.name)
		}
		if st, _ := os.Stat(p); st.Mode().Perm() != c.mode {
			t.Errorf("%s: mode is now %v", c.name, st.Mode())
		}
	}
	if _, err := ssh.EnsureUserKey(dir, true); errs.CodeOf(err) != "ssh_key_unusable" {
		t.Errorf("a directory: %v", err)
	}
	if _, err := ssh.EnsureUserKey(filepath.Join(dir, "none"), false); errs.CodeOf(err) != "ssh_key_missing" {
		t.Errorf("missing: %v", err)
	}
	if _, err := ssh.EnsureUserKey("relative", true); errs.CodeOf(err) != "ssh_bad_value" {
		t.Errorf("relative: %v", err)
	}
}

func TestHostKeyIsWhatSSHDReads(t *testing.T) {
	k, err := ssh.NewHostKey("0123abcd")
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(p, k.Private, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "ssh-keygen", "-y", "-f", p); strings.TrimSpace(out) != k.Public {
		t.Errorf("ssh-keygen reads %q, want %q", out, k.Public)
	}
	other, err := ssh.NewHostKey("0123abcd")
	if err != nil || other.Public == k.Public {
		t.Errorf("two host keys are one: %v", err)
	}
	if _, err := ssh.NewHostKey("x\ny"); err == nil {
		t.Error("an id with a newline was accepted")
	}
	kh, err := ssh.KnownHosts("0123abcd", k.Public)
	if err != nil {
		t.Fatal(err)
	}
	f := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(f, kh, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "ssh-keygen", "-F", "banger-0123abcd", "-f", f); !strings.Contains(out, strings.Fields(k.Public)[1]) {
		t.Errorf("ssh-keygen finds %q", out)
	}
	for _, bad := range []string{"", "rubbish", k.Public + "\n" + other.Public, "command=\"x\" " + k.Public} {
		if _, err := ssh.KnownHosts("0123abcd", bad); err == nil {
			t.Errorf("accepted host key %q", bad)
		}
	}
}
