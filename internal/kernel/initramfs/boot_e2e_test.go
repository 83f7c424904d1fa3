//go:build e2e

package initramfs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/debian"
	"github.com/banger-dev/banger/internal/kernel/initramfs"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/kernels"
)

// cacheDir keeps the download between runs of the tests.
func cacheDir(t *testing.T) string {
	t.Helper()
	if d := os.Getenv("BANGER_TEST_CACHE"); d != "" {
		return d
	}
	d, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(d, "banger-test")
}

// TestRealKernelFindsModulesAndSeed fetches Debian's kernel, makes its
// initramfs with an init that reports what it sees, and boots it.
func TestRealKernelFindsModulesAndSeed(t *testing.T) {
	recipes, err := kernel.ReadRecipes(kernels.Recipes)
	if err != nil {
		t.Fatal(err)
	}
	store, err := kernel.Open(t.TempDir(), recipes, &debian.Source{Cache: cacheDir(t), Root: os.DirFS("/")})
	if err != nil {
		t.Fatal(err)
	}
	k, err := store.Ensure(t.Context(), "generic-6.12", func(e op.Event) {
		if e.Status != op.Progress {
			t.Log(e.Status, e.Message, e.Elapsed)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Verify(t.Context(), k); err != nil {
		t.Error(err)
	}
	init := filepath.Join(t.TempDir(), "init")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", init, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	base, err := initramfs.Build(t.Context(), k, init, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	const seed = `{"token":"only this VM's"}`
	if err := initramfs.WithSeed(t.Context(), base, initrd, []byte(seed)); err != nil {
		t.Fatal(err)
	}
	out := boot(t, k, initrd)
	_, line, found := strings.Cut(out, "REPORT ")
	if !found {
		t.Fatalf("no report on the console:\n%s", out)
	}
	var r struct {
		Modules, Failed []string
		Seed            string
		SeedMode        string `json:"seed_mode"`
	}
	if err := json.NewDecoder(strings.NewReader(line)).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if len(r.Modules) < 5 || len(r.Failed) != 0 {
		t.Errorf("modules %v, failed %v", r.Modules, r.Failed)
	}
	if r.Seed != seed || r.SeedMode != "-rw-------" {
		t.Errorf("seed %q, mode %s", r.Seed, r.SeedMode)
	}
}

// boot runs the kernel under emulation until it switches off and gives what
// stood on its console.
func boot(t *testing.T, k kernel.Kernel, initrd string) string {
	t.Helper()
	cmdline := "console=ttyS0 quiet panic=-1 reboot=t no_timer_check"
	if khz := hostTSC(t); khz > 0 {
		cmdline += fmt.Sprintf(" tsc_early_khz=%d lpj=%d", khz, khz*1000/k.Manifest.HZ)
	}
	args := []string{"-M", "microvm,accel=tcg,rtc=on", "-cpu", "max", "-smp", "1", "-m", "512", "-nodefaults",
		"-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", k.VMLinux, "-initrd", initrd, "-append", cmdline}
	for _, rom := range []string{"/usr/share/qemu/qboot.rom", "/usr/share/seabios/qboot.rom"} {
		if _, err := os.Stat(rom); err == nil {
			args = append(args, "-bios", rom)
			break
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v, %v: %s", err, ctx.Err(), out)
	}
	return string(out)
}

// hostTSC gives the rate that the host's kernel found, or 0.
func hostTSC(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`cpu MHz\s*: (\d+)\.(\d{3})`).FindStringSubmatch(string(b))
	if m == nil {
		return 0
	}
	khz, _ := strconv.Atoi(m[1] + m[2])
	return khz
}
