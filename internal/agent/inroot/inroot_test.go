package inroot_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/inroot"
)

func open(t *testing.T) (*inroot.Root, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s holds %q (%v), want %q", path, got, err, want)
	}
}

func TestAbsoluteLinksStartAtTheRoot(t *testing.T) {
	r, dir := open(t)
	outside := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755))
	must(t, os.Symlink("/usr/lib", filepath.Join(dir, "lib")))
	must(t, os.Symlink(outside, filepath.Join(dir, "etc")))
	must(t, os.Symlink("../../../../../../..", filepath.Join(dir, "up")))

	f, err := r.MkdirAll("/lib/modules/6.1", 0o755)
	must(t, err)
	f.Close()
	if _, err := os.Stat(filepath.Join(dir, "usr/lib/modules/6.1")); err != nil {
		t.Error("the directory was not made through the link:", err)
	}
	// /etc points at a directory that exists outside only.
	must(t, r.WriteFile("/etc/hostname", []byte("x\n"), 0o644))
	if names, _ := os.ReadDir(outside); len(names) != 0 {
		t.Error("written outside the root:", names)
	}
	content(t, filepath.Join(dir, outside, "hostname"), "x\n")
	must(t, r.WriteFile("/up/here", []byte("y"), 0o600))
	content(t, filepath.Join(dir, "here"), "y")
}

func TestOtherMountsAreNotWrittenTo(t *testing.T) {
	r, err := inroot.Open("/")
	must(t, err)
	defer r.Close()
	for _, name := range []string{"/proc/sys/kernel/hostname", "/proc/self/root/x", "/sys/x"} {
		if err := r.WriteFile(name, []byte("x"), 0o644); !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s: %v, want a refusal to cross a mount", name, err)
		}
	}
}

func TestWriteFileReplacesALinkAndKeepsItsTarget(t *testing.T) {
	r, dir := open(t)
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "target"), []byte("old"), 0o644))
	must(t, os.Symlink("/target", filepath.Join(dir, "etc/resolv.conf")))
	must(t, os.WriteFile(filepath.Join(dir, "etc/.resolv.conf.banger"), []byte("left over"), 0o644))

	for range 2 { // idempotent
		must(t, r.WriteFile("/etc/resolv.conf", []byte("new"), 0o640))
	}
	content(t, filepath.Join(dir, "etc/resolv.conf"), "new")
	content(t, filepath.Join(dir, "target"), "old")
	info, err := os.Lstat(filepath.Join(dir, "etc/resolv.conf"))
	must(t, err)
	if info.Mode() != 0o640 {
		t.Errorf("mode %v, want a regular file of mode 0640", info.Mode())
	}
	if names, _ := os.ReadDir(filepath.Join(dir, "etc")); len(names) != 1 {
		t.Error("temporary files stayed:", names)
	}
	must(t, os.Mkdir(filepath.Join(dir, "etc/hosts"), 0o755))
	if err := r.WriteFile("/etc/hosts", []byte("x"), 0o644); err == nil {
		t.Error("a directory was replaced by a file")
	}
}

func TestMkdirAllMakesWhatADanglingLinkPointsAt(t *testing.T) {
	r, dir := open(t)
	must(t, os.Symlink("usr/lib", filepath.Join(dir, "lib")))
	f, err := r.MkdirAll("lib/modules", 0o755)
	must(t, err)
	f.Close()
	if info, err := os.Stat(filepath.Join(dir, "usr/lib/modules")); err != nil || !info.IsDir() {
		t.Error("no directory behind the link:", err)
	}
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	if f, err := r.MkdirAll("/loop/x", 0o755); err == nil {
		f.Close()
		t.Error("a loop of links was walked")
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	if f, err := r.MkdirAll("/file/x", 0o755); err == nil {
		f.Close()
		t.Error("a directory was made below a file")
	}
}

func TestReadFileIsBoundedAndRegular(t *testing.T) {
	r, dir := open(t)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("12345"), 0o644))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	if data, err := r.ReadFile("/f", 5); err != nil || string(data) != "12345" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := r.ReadFile("/f", 4); err == nil {
		t.Error("a file longer than the limit was read")
	}
	if _, err := r.ReadFile("/fifo", 4); err == nil {
		t.Error("a pipe was read")
	}
}

func TestRemoveAndSymlinkAreIdempotent(t *testing.T) {
	r, dir := open(t)
	must(t, r.Remove("/none/of/it"))
	for range 2 {
		must(t, r.Symlink("/etc/machine-id", "/var/lib/dbus/machine-id"))
	}
	if got, err := os.Readlink(filepath.Join(dir, "var/lib/dbus/machine-id")); err != nil || got != "/etc/machine-id" {
		t.Errorf("%q, %v", got, err)
	}
	for range 2 {
		must(t, r.Remove("/var/lib/dbus/machine-id"))
	}
	if _, err := r.Stat("/var/lib/dbus/machine-id"); !errors.Is(err, unix.ENOENT) {
		t.Error("still there:", err)
	}
}

func TestRealDirTakesThePlaceOfALink(t *testing.T) {
	r, dir := open(t)
	outside := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(dir, "dev")))
	must(t, os.WriteFile(filepath.Join(dir, "sys"), nil, 0o644))
	for _, name := range []string{"/dev", "/sys"} {
		for i := range 2 {
			f, replaced, err := r.RealDir(name, 0o755)
			must(t, err)
			f.Close()
			if replaced != (i == 0) {
				t.Errorf("%s, time %d: replaced %v", name, i, replaced)
			}
		}
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || !info.IsDir() {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if f, replaced, err := r.RealDir("/proc", 0o555); err != nil || replaced {
		t.Errorf("new: %v, %v", replaced, err)
	} else {
		f.Close()
	}
	if _, _, err := r.RealDir("/a/b", 0o755); err == nil {
		t.Error("a directory below the top was taken")
	}
}
