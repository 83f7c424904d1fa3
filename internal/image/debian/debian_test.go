package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"github.com/banger-dev/banger/images"
	"github.com/banger-dev/banger/internal/aptsource"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/op"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestShippedRecipes(t *testing.T) {
	names, err := Names(images.FS)
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, n := range names {
		r, err := Load(images.FS, n)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, f := range r.add() {
			if seen[f.Name] {
				t.Errorf("%s puts %s in twice", n, f.Name)
			}
			seen[f.Name] = true
			if !f.Dir && r.drop(f.Name, false) && f.Link == "" && strings.HasPrefix(f.Name, "dev/") {
				t.Errorf("%s puts %s in and leaves it out", n, f.Name)
			}
		}
		for _, p := range r.allPackages() {
			if strings.Contains(p, "allow-unauthenticated") {
				t.Error(p)
			}
		}
	}
	r, err := Load(images.FS, "debian-bookworm")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"etc/machine-id", "etc/resolv.conf", "etc/fstab", "etc/ssh/sshd_config.d/10-banger.conf", "etc/systemd/system/apt-daily.timer", "usr/lib/modules"} {
		found := false
		for _, f := range r.add() {
			found = found || f.Name == want
		}
		if !found {
			t.Errorf("%s is not put in", want)
		}
	}
}

func TestDrop(t *testing.T) {
	r, err := Load(images.FS, "debian-bookworm")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"dev/console": true, "dev": false, "etc/ssh/ssh_host_rsa_key": true, "etc/ssh/ssh_host_ed25519_key.pub": true, "etc/ssh/ssh_config": false,
		"var/log/dpkg.log": true, "var/cache/apt/pkgcache.bin": true, "etc/apt/sources.list.d/x.list": true, "etc/apt/auth.conf.d/a.conf": true,
		"etc/systemd/system/multi-user.target.wants/docker.service": true, "etc/systemd/system/sockets.target.wants/docker.socket": false,
		"usr/lib/systemd/system/docker.service": false, "var/lib/dpkg/status": false, "var/lib/dpkg/status-old": true, "etc/passwd": false,
		"tmp/x": true, "devel/x": false, "etc/apt/preferences.d/pins": true, "etc/apt/apt.conf.d/00banger-build": true, "etc/apt/apt.conf.d/70debconf": false,
	} {
		if got := r.drop(name, false); got != want {
			t.Errorf("%s: dropped %v", name, got)
		}
	}
	if r.drop("var/log/journal", true) {
		t.Error("a directory of /var/log went")
	}
}

func TestBadRecipes(t *testing.T) {
	good := "schema=1\nname=\"x\"\nsuite=\"bookworm\"\ncomponents=[\"main\"]\nepoch=1\npackages=[\"bash\"]\n"
	for name, toml := range map[string]string{
		"unknown key": good + "colour=1\n", "option as package": strings.Replace(good, `"bash"`, `"--force"`, 1),
		"comma": strings.Replace(good, `"bash"`, `"a,b"`, 1), "suite": strings.Replace(good, `"bookworm"`, `"book worm"`, 1),
		"schema": strings.Replace(good, "schema=1", "schema=9", 1), "unit": good + "[units]\nmask=[\"../x.service\"]\n",
		"path": good + "[exclude]\npaths=[\"/usr/share doc\"]\n", "name": strings.Replace(good, `"x"`, `"y"`, 1), "not toml": "{",
		"pin": good + "[[extra]]\npin=\"tr\\nix\"\npackages=[\"a2\"]\n",
	} {
		_, err := Load(fstest.MapFS{"x/recipe.toml": {Data: []byte(toml)}}, "x")
		if errs.CodeOf(err) != "image_recipe" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(fstest.MapFS{"x/recipe.toml": {Data: []byte(good)}}, "x"); err != nil {
		t.Error(err)
	}
}

func TestStatus(t *testing.T) {
	got := parseStatus([]byte("Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2\nDescription: a\n b: c\n .\n\n" +
		"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: bash\nStatus: install ok installed\nVersion: 5\nArchitecture: amd64"))
	if len(got) != 2 || got[0] != (image.Package{Name: "bash", Version: "5", Arch: "amd64"}) || got[1].Version != "1:1.2" {
		t.Errorf("%+v", got)
	}
}

func TestProgressNeverGoesBack(t *testing.T) {
	m := &meter{stage: op.Reporter(nil).Stage("image", "x")}
	var last int64
	p := &progress{report: m.packages}
	lines := []string{"0 upgraded, 2 newly installed, 0 to remove"}
	add := func(verb string, n int) {
		for i := range n {
			lines = append(lines, fmt.Sprintf("%s pkg%d:amd64 (1) ...", verb, i))
		}
	}
	add("Get:1 http://u:secret@m bookworm/main amd64", 2)
	add("Unpacking", 2)
	add("Setting up", 2)
	lines = append(lines, "0 upgraded, 400 newly installed, 0 to remove")
	add("Get:1 http://m bookworm/main amd64", 400)
	add("Unpacking", 400)
	add("Setting up", 400)
	for _, l := range lines {
		p.line(l)
		if m.last < last || m.last > packagesEnd {
			t.Fatalf("%q: from %d to %d", l, last, m.last)
		}
		if strings.HasPrefix(l, "Setting up pkg1:") && last == 0 && m.last > 10 {
			t.Errorf("%d percent after two packages of hundreds", m.last)
		}
		last = m.last
	}
	if last != packagesEnd {
		t.Errorf("ended at %d, want %d", last, packagesEnd)
	}
	if strings.Contains(strings.Join(p.tail, ""), "secret") {
		t.Error("credentials are kept")
	}
	m.written(usualBytes * 3)
	if m.last != 99 {
		t.Errorf("writing ended at %d", m.last)
	}
}

// host makes a root directory with apt sources and keys.
func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	files["usr/share/keyrings/debian-archive-keyring.gpg"] = "keys"
	for name, data := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFindMirror(t *testing.T) {
	none := func(string) string { return "" }
	m, err := FindMirror(host(t, map[string]string{"etc/apt/sources.list": "deb http://m/debian trixie main\n", "etc/apt/auth.conf.d/a.conf": "machine m"}), none)
	if err != nil || m.Main != "http://m/debian" || m.Security != "http://m/debian-security" || len(m.Auth) != 1 || m.Keyring == "" {
		t.Errorf("%+v, %v", m, err)
	}
	m, err = FindMirror(host(t, map[string]string{}), func(string) string { return "http://e/debian" })
	if err != nil || m.Main != "http://e/debian" || m.Security != "" {
		t.Errorf("%+v, %v", m, err)
	}
	for name, c := range map[string]struct{ list, env, code string }{
		"no sources":           {"", "", "debian_mirror_unknown"},
		"another distribution": {"deb http://u/ubuntu noble main\n", "", "debian_mirror_unknown"},
		"bad environment":      {"", "ftp://u:secret@e", "debian_mirror_unknown"},
	} {
		_, err := FindMirror(host(t, map[string]string{"etc/apt/sources.list": c.list}), func(string) string { return c.env })
		if errs.CodeOf(err) != c.code || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = FindMirror(t.TempDir(), func(string) string { return "http://m" })
	if errs.CodeOf(err) != "debian_keyring_missing" || errs.HintOf(err) == "" {
		t.Error(err)
	}
}

func TestCredentialsStayOut(t *testing.T) {
	r, err := Load(images.FS, "debian-bookworm")
	if err != nil {
		t.Fatal(err)
	}
	m := Mirror{Main: "https://user:secret@m/debian?token=secret", Security: "https://secret@s/sec"}
	var inImage bytes.Buffer
	for _, f := range m.files(r) {
		inImage.Write(f.Data)
	}
	if s := inImage.String(); strings.Contains(s, "secret") || !strings.Contains(s, "https://m/debian bookworm main") || !strings.Contains(s, "https://s/sec trixie-security main") {
		t.Errorf("in the image:\n%s", s)
	}
	b := &bootstrap{recipe: r, mirror: m, work: t.TempDir(), aptOpts: []string{`Acquire::http::Proxy "http://u:secret@p"`}, mode: "root"}
	argv, err := b.argv()
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(argv, " "); strings.Contains(s, "secret") {
		t.Errorf("on the command line: %s", s)
	}
	if st, err := os.Stat(filepath.Join(b.work, buildConf)); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if o := parseAptOptions("Acquire::http::Proxy http://p\nAPT::Get::AllowUnauthenticated 1\nAcquire::https::Verify-Peer false\n"); len(o) != 1 {
		t.Error(o)
	}
}

// fakeTool stands in for mmdebstrap: a script that gets its command line.
func fakeTool(t *testing.T, script string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "mmdebstrap")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func tarFile(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range map[string]string{"./usr/sbin/init": "x", "./etc/ssh/ssh_host_rsa_key": "secret", "./etc/apt/sources.list": "secret",
		"./var/lib/dpkg/status": "Package: bash\nStatus: install ok installed\nVersion: 5\n"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "t.tar")
	if err := os.WriteFile(p, append(b.Bytes(), make([]byte, 8192)...), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// fakeSource gives a recipe of one package with a fake mmdebstrap.
func fakeSource(t *testing.T, script string) *Source {
	t.Helper()
	return &Source{
		Recipes: fstest.MapFS{"x/recipe.toml": {Data: []byte("schema=1\nname=\"x\"\nsuite=\"bookworm\"\ncomponents=[\"main\"]\nepoch=1\npackages=[\"bash\"]\ninit=\"/sbin/init\"\n")}},
		Cache:   t.TempDir(), Getenv: func(k string) string { return map[string]string{aptsource.Env: "http://u:secret@m/debian"}[k] },
		Root: host(t, map[string]string{}), Bin: fakeTool(t, script),
	}
}

func TestMake(t *testing.T) {
	work := t.TempDir()
	dst := filepath.Join(t.TempDir(), "rootfs")
	s := fakeSource(t, "cat >$TMPDIR/../sources; echo 'Setting up bash (5) ...' >&2; cat "+tarFile(t))
	if os.Geteuid() != 0 {
		s.Bin = fakeTool(t, "cat >/dev/null; cat "+tarFile(t))
	}
	m, err := s.Make(t.Context(), "x", dst, work, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Packages) != 1 || m.Packages[0].Name != "bash" || m.Init != "/sbin/init" || m.Source != "recipe:x" || m.Size == 0 {
		t.Errorf("%+v", m)
	}
	b, err := os.ReadFile(dst)
	if err != nil || int64(len(b)) != m.Size {
		t.Fatal(len(b), err)
	}
	if bytes.Contains(b, []byte("secret")) {
		t.Error("the image holds a secret")
	}
	if left, _ := filepath.Glob(filepath.Join(work, "banger-build-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFailuresAreExplained(t *testing.T) {
	for name, c := range map[string]struct{ script, code string }{
		"fails at once":  {"echo 'E: apt-get update failed' >&2; exit 25", "mmdebstrap_failed"},
		"fails at last":  {"cat " + tarFile(t) + "; echo 'E: oh' >&2; exit 1", "mmdebstrap_failed"},
		"no mirror":      {"echo 'Err:1 http://u:secret@m bookworm InRelease' >&2; echo '  Could not resolve m' >&2; exit 1", "debian_mirror"},
		"disk full":      {"echo 'tar: x: No space left on device' >&2; exit 1", "disk_full"},
		"cut stream":     {"head -c 700 " + tarFile(t), "image_stream"},
		"empty stream":   {"exit 1", "mmdebstrap_failed"},
		"endless line":   {"head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1", "mmdebstrap_failed"},
		"no subordinate": {"echo 'E: invalid /etc/subuid entry' >&2; exit 1", "unshare_missing"},
	} {
		t.Run(name, func(t *testing.T) {
			dst := filepath.Join(t.TempDir(), "rootfs")
			_, err := fakeSource(t, c.script).Make(t.Context(), "x", dst, t.TempDir(), nil)
			if errs.CodeOf(err) != c.code {
				t.Errorf("%v (%s), want %s", err, errs.CodeOf(err), c.code)
			}
			if strings.Contains(fmt.Sprint(err), "secret") || strings.Contains(fmt.Sprint(err), "\n") && c.code != "image_stream" {
				t.Errorf("message: %v", err)
			}
			if _, err := os.Stat(dst); !errors.Is(err, os.ErrNotExist) {
				t.Error("the image is there")
			}
		})
	}
	s := fakeSource(t, "")
	s.Bin = "/nonexistent/mmdebstrap"
	_, err := s.Make(t.Context(), "x", filepath.Join(t.TempDir(), "r"), t.TempDir(), nil)
	if errs.CodeOf(err) != "mmdebstrap_missing" || errs.HintOf(err) == "" {
		t.Error(err)
	}
}

func TestCancelKillsTheWholeFamily(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	// a child that does not listen, as apt's own children may not
	s := fakeSource(t, "(trap '' TERM; echo $$ >>"+pids+"; exec sleep 1000) & echo $! >>"+pids+"; echo 'Setting up a (1)' >&2; wait")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun := func(e op.Event) {
		if e.Status == op.Progress {
			cancel()
		}
	}
	start := time.Now()
	work := t.TempDir()
	_, err := s.Make(ctx, "x", filepath.Join(t.TempDir(), "r"), work, begun)
	if errs.KindOf(err) != errs.Cancelled {
		t.Fatalf("%v", err)
	}
	if d := time.Since(start); d > stopGrace {
		t.Errorf("took %s", d)
	}
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, 0); err == nil && !zombie(pid) {
			t.Errorf("process %d lives on", pid)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(work, "banger-build-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// zombie says that a process is dead but for its parent's knowing.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}
