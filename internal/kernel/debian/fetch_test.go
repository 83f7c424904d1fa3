package debian_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/debian"
	"github.com/banger-dev/banger/internal/op"
)

// fakeApt puts an apt-get on PATH that answers update and download from dir
// and writes its arguments and sources to dir/log.
func fakeApt(t *testing.T, dir, body string) {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nroot=${0%/bin/apt-get}\necho \"$@\" >>\"$root/log\"\n" +
		"for a; do case $p in -c) conf=$a;; esac; p=$a; done\napt=${conf%/apt.conf}\n" + body
	if err := os.WriteFile(filepath.Join(bin, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

func recipe(t *testing.T) kernel.Recipe {
	key := filepath.Join(t.TempDir(), "key.gpg")
	if err := os.WriteFile(key, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return kernel.Recipe{Schema: 1, Name: "k", Debian: kernel.Debian{
		Suite: "bookworm-security", Component: "main", Architecture: "amd64", Package: "linux-*-cloud", Keyring: key}}
}

func sources() fstest.MapFS {
	return fstest.MapFS{"etc/apt/sources.list": {Data: []byte("deb http://me:secret@m.example/debian-security bookworm-security main\n")}}
}

const serve = `case "$*" in
*update*) cp "$root/Packages" "$apt/state/lists/m_Packages"; cp "$apt/etc/sources.list" "$root/sources";;
*download*) echo "dlstatus:1:50.0:half" >&3; cp "$root/pkg.deb" ./got.deb;;
esac`

func publish(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	deb := ar("debian-binary", "2.0\n", "data.tar", string(tarOf(t, files)))
	list := fmt.Sprintf("Package: linux-1-cloud\nVersion: 9-1\nSHA256: %064x\nSize: 5\n\nPackage: linux-2-cloud\nVersion: 10-1\nSize: %d\nSHA256: %x\n\n"+
		"Package: linux-3-cloud-dbg\nVersion: 11\nSize: 1\nSHA256: x\n", 1, len(deb), sha256.Sum256(deb))
	for n, b := range map[string]string{"pkg.deb": string(deb), "Packages": list} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

var good = map[string]string{
	"./boot/vmlinuz-6.x": "kernel", "./boot/config-6.x": "CONFIG_HZ=250", "./boot/System.map-6.x": "no",
	"./lib/modules/6.x/kernel/a.ko": "module", "./usr/share/doc/x": "no",
}

func fetch(t *testing.T, ctx context.Context, s *debian.Source, r kernel.Recipe) (string, kernel.Origin, error) {
	t.Helper()
	dir := t.TempDir()
	o, err := s.Fetch(ctx, r, dir, op.Reporter(nil).Stage("kernel", ""))
	return dir, o, err
}

func TestNewestPackageIsFetchedAndLaidOut(t *testing.T) {
	root := t.TempDir()
	fakeApt(t, root, serve)
	publish(t, root, good)
	s := &debian.Source{Cache: filepath.Join(root, "cache"), Root: sources()}
	r := recipe(t)
	dir, o, err := fetch(t, t.Context(), s, r)
	if err != nil {
		t.Fatal(err)
	}
	if o.Release != "6.x" || o.Source != "linux-2-cloud 10-1 (debian bookworm-security)" {
		t.Errorf("origin %+v", o)
	}
	for n, want := range map[string]string{"vmlinuz": "kernel", "config": "CONFIG_HZ=250", "modules/kernel/a.ko": "module"} {
		if b, err := os.ReadFile(filepath.Join(dir, n)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", n, b, err)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(root, "sources")); !strings.Contains(string(b), "signed-by="+r.Debian.Keyring+"] http://me:secret@m.example/debian-security bookworm-security main") {
		t.Errorf("apt was given %q", b)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "log")); strings.Contains(string(b), "secret") {
		t.Errorf("credentials in apt's arguments: %s", b)
	}
	// A second fetch downloads nothing, and a dead archive is no obstacle.
	fakeApt(t, root, `case "$*" in *update*) echo "E: no http://me:secret@m.example" >&2; exit 100;; esac; exit 1`)
	_, o, err = fetch(t, t.Context(), s, r)
	if err != nil || o.Release != "6.x" || o.Note == "" || strings.Contains(o.Note, "secret") {
		t.Errorf("from the cache: %+v, %v", o, err)
	}
	// A damaged download does not count as one.
	debs, _ := filepath.Glob(filepath.Join(root, "cache", "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("cache holds %v", debs)
	}
	if err := os.WriteFile(debs[0], []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = fetch(t, t.Context(), s, r)
	if errs.CodeOf(err) != "kernel_fetch_failed" || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "m.example") {
		t.Errorf("got %v (%s)", err, errs.CodeOf(err))
	}
	if left, _ := filepath.Glob(filepath.Join(root, "cache", "apt-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWrongContentIsRefused(t *testing.T) {
	root := t.TempDir()
	fakeApt(t, root, serve)
	s := &debian.Source{Cache: filepath.Join(root, "cache"), Root: sources()}
	for name, files := range map[string]map[string]string{
		"no modules":   {"boot/vmlinuz-1": "k", "boot/config-1": "c"},
		"two releases": {"boot/vmlinuz-1": "k", "boot/config-2": "c", "lib/modules/1/a": "m"},
	} {
		publish(t, root, files)
		if _, _, err := fetch(t, t.Context(), s, recipe(t)); errs.CodeOf(err) != "kernel_package_unusable" {
			t.Errorf("%s: %v", name, err)
		}
	}
	publish(t, root, good)
	if err := os.WriteFile(filepath.Join(root, "pkg.deb"), []byte("other bytes"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := fetch(t, t.Context(), &debian.Source{Cache: t.TempDir(), Root: sources()}, recipe(t)); errs.CodeOf(err) != "kernel_fetch_failed" {
		t.Errorf("a package without its digest: %v", err)
	}
}

func TestWhatTheHostLacksIsSaid(t *testing.T) {
	r := recipe(t)
	_, _, err := fetch(t, t.Context(), &debian.Source{Cache: t.TempDir(), Root: fstest.MapFS{}}, r)
	if errs.CodeOf(err) != "kernel_no_mirror" || errs.HintOf(err) == "" {
		t.Errorf("no sources: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	_, _, err = fetch(t, t.Context(), &debian.Source{Cache: t.TempDir(), Root: sources()}, r)
	if errs.CodeOf(err) != "kernel_needs_apt" || !errs.Is(err, errs.Unsupported) {
		t.Errorf("no apt: %v", err)
	}
	r.Debian.Keyring = "/nonexistent/key.gpg"
	_, _, err = fetch(t, t.Context(), &debian.Source{Cache: t.TempDir(), Root: sources()}, r)
	if errs.CodeOf(err) != "kernel_needs_keyring" {
		t.Errorf("no keyring: %v", err)
	}
}

func TestCancelEndsAptAndItsChildren(t *testing.T) {
	root := t.TempDir()
	fakeApt(t, root, `sleep 60 & echo $! >"$root/child.tmp"; mv "$root/child.tmp" "$root/child"; wait`)
	cache := filepath.Join(root, "cache")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(root, "child")); err == nil {
				cancel()
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
		}
	}()
	_, _, err := fetch(t, ctx, &debian.Source{Cache: cache, Root: sources()}, recipe(t))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	pid, _ := os.ReadFile(filepath.Join(root, "child"))
	// A killed child may be a zombie for a moment; it must not run.
	st, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	if err == nil && !strings.Contains(string(st), ") Z ") {
		t.Errorf("apt's child runs on: %s", st)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
