// Package guestimage makes the kernel and initramfs of the conformance suite's
// guest: banger's own kernel with a tiny init in place of the agent. It is for
// tests; nothing that is installed imports it.
package guestimage

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/debian"
	"github.com/banger-dev/banger/internal/kernel/initramfs"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/kernels"
)

// Environment variables of the tests that need a kernel.
const (
	// EnvKernel names a directory with vmlinux and bootmodules/, used in
	// place of fetching Debian's kernel.
	EnvKernel = "BANGER_TEST_KERNEL_DIR"
	// EnvCache keeps what tests fetch between runs.
	EnvCache = "BANGER_TEST_CACHE"
)

// Image is a bootable guest.
type Image struct {
	Kernel, Initrd string
	HZ             int
}

// Cache is the directory that what tests fetch is kept in.
func Cache(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(EnvCache)
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(user, "banger-test")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// New makes the image in dir, fetching a kernel on first use.
func New(t testing.TB, dir string) Image {
	t.Helper()
	k := findKernel(t)
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("this file does not know its place")
	}
	init := filepath.Join(dir, "init")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./testdata/guest")
	build.Dir = filepath.Dir(filepath.Dir(here))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v: %s", err, out)
	}
	initrd, err := initramfs.Build(t.Context(), k, init, dir)
	if err != nil {
		t.Fatal(err)
	}
	return Image{Kernel: k.VMLinux, Initrd: initrd, HZ: k.Manifest.HZ}
}

func findKernel(t testing.TB) kernel.Kernel {
	t.Helper()
	if dir := os.Getenv(EnvKernel); dir != "" {
		return kernel.Kernel{
			Manifest: kernel.Manifest{Name: "test", HZ: 250, Digest: dir},
			VMLinux:  filepath.Join(dir, "vmlinux"), BootModules: filepath.Join(dir, "bootmodules"),
		}
	}
	recipes, err := kernel.ReadRecipes(kernels.Recipes)
	if err != nil {
		t.Fatal(err)
	}
	cache := Cache(t)
	store, err := kernel.Open(filepath.Join(cache, "kernels"), recipes, &debian.Source{Cache: cache, Root: os.DirFS("/")})
	if err != nil {
		t.Fatal(err)
	}
	k, err := store.Ensure(t.Context(), "generic-6.12", func(op.Event) {})
	if err != nil {
		t.Fatal(err)
	}
	return k
}
