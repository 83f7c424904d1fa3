//go:build e2e || soak

package debian

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/banger-dev/banger/internal/image"
)

// tiny is a recipe that takes seconds, made by the real mmdebstrap from the
// mirror this host uses.
const tiny = `schema=1
name="tiny"
suite="bookworm"
security=["bookworm-security"]
components=["main"]
epoch=1767225600
init="/sbin/init"
packages=["busybox-static"]
[units]
mask=["apt-daily.timer"]
[exclude]
paths=["/usr/share/doc/*","/usr/share/locale/*"]
`

func tinyStore(t *testing.T) (*image.Store, string) {
	t.Helper()
	src := &Source{
		Recipes: fstest.MapFS{"tiny/recipe.toml": {Data: []byte(tiny)}, "tiny/root/etc/motd": {Data: []byte("hello\n")}},
		Cache:   t.TempDir(), Getenv: os.Getenv, Root: "/",
	}
	dir := t.TempDir()
	store, err := image.Open(dir, src)
	if err != nil {
		t.Fatal(err)
	}
	return store, dir
}

func TestTinyImageForReal(t *testing.T) {
	store, dir := tinyStore(t)
	img, err := store.Ensure(t.Context(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", img.Rootfs).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	if !slices.ContainsFunc(img.Manifest.Packages, func(p image.Package) bool { return p.Name == "busybox-static" && p.Version != "" }) {
		t.Errorf("%d packages, none of them busybox-static", len(img.Manifest.Packages))
	}
	for path, want := range map[string]string{"/etc/motd": "hello", "/etc/apt/sources.list": "bookworm main", "/usr/bin/busybox": "BusyBox", "/var/lib/dpkg/status": "busybox-static"} {
		out, err := exec.Command("/usr/sbin/debugfs", "-R", "cat "+path, img.Rootfs).Output()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: no %q in %d bytes, %v", path, want, len(out), err)
		}
	}
	for _, path := range []string{"/dev/null", "/etc/apt/apt.conf.d/99mmdebstrap", "/var/cache/apt/pkgcache.bin"} {
		if out, _ := exec.Command("/usr/sbin/debugfs", "-R", "stat "+path, img.Rootfs).Output(); strings.Contains(string(out), "Inode:") {
			t.Errorf("%s is in the image", path)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "tmp-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
