//go:build e2e

package guesttest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/guesttest"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/hypervisortest/guestimage"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/debian"
	"github.com/banger-dev/banger/internal/kernel/initramfs"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/kernels"
)

// TestVirtioSerial runs the contract over a real virtio-serial port of a real
// guest, under whatever QEMU offers here.
func TestVirtioSerial(t *testing.T) {
	g := bootGuest(t)
	guesttest.Contract{Endpoint: g.agent, Token: g.token, Restarts: 30, Key: 250 * time.Millisecond}.Run(t)
	t.Run("commands have a control group", g.cgroup)
	t.Run("orphans are reaped", g.orphans)
	t.Run("speed", g.speed)
}

func (g realGuest) dial(t *testing.T) *guest.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := guest.Dial(ctx, g.agent, g.token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func sh(t *testing.T, c *guest.Client, script string) string {
	t.Helper()
	out, errout, exit, err := guesttest.Run(t.Context(), c, wire.ExecRequest{Argv: []string{"sh", "-c", script}}, nil)
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: %s %+v %v", script, errout, exit, err)
	}
	return string(out)
}

func (g realGuest) cgroup(t *testing.T) {
	if got := sh(t, g.dial(t), "cat /proc/self/cgroup"); got != "0::/"+wire.CommandCgroup+"\n" {
		t.Errorf("runs in %q", got)
	}
}

// orphans leaves processes behind whose parent is then PID 1, the agent.
func (g realGuest) orphans(t *testing.T) {
	c := g.dial(t)
	sh(t, c, "for i in 1 2 3; do (sleep 0.1 >/dev/null 2>&1 &); done")
	zombies := regexp.MustCompile(`(?m)^\d+ \(.*\) Z`)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	seen := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		seen = sh(t, c, "cat /proc/[0-9]*/stat 2>/dev/null || true")
		if !strings.Contains(seen, "(sleep)") && !zombies.MatchString(seen) {
			return
		}
	}
	t.Errorf("still there:\n%s", seen)
}

type realGuest struct {
	agent hypervisor.Endpoint
	floor string // socket of the minimal agent
	token []byte
}

func bootGuest(t *testing.T) realGuest {
	t.Helper()
	dir := t.TempDir()
	g := realGuest{
		agent: hypervisor.Endpoint{Kind: link.Serial, Path: filepath.Join(dir, "agent")},
		floor: filepath.Join(dir, "floor"), token: bytes.Repeat([]byte("t"), 32),
	}
	init := filepath.Join(dir, "init")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v: %s", err, out)
	}
	k := realKernel(t)
	base, err := initramfs.Build(t.Context(), k, init, dir)
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(dir, "initrd.whole")
	whole := append([]byte(readFile(t, base)), cpioFile("programs.tar", programs(t, g.token))...)
	if err := os.WriteFile(initrd, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	startQEMU(t, k.VMLinux, initrd, k.Manifest.HZ, g)
	return g
}

func realKernel(t *testing.T) kernel.Kernel {
	t.Helper()
	recipes, err := kernel.ReadRecipes(kernels.Recipes)
	if err != nil {
		t.Fatal(err)
	}
	cache := guestimage.Cache(t)
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

// cpioFile is an archive of one file, to be appended to an initramfs.
func cpioFile(name string, data []byte) []byte {
	var b []byte
	entry := func(name string, mode int, data []byte) {
		b = fmt.Appendf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		b = append(b, make([]byte, -len(b)&3)...)
		b = append(b, data...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	entry(name, 0o100600, data)
	entry("TRAILER!!!", 0, nil)
	return append(b, make([]byte, -len(b)&511)...)
}

// programs is a tar file of the token, the programs that the suite runs and
// the libraries that they need.
func programs(t *testing.T, token []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	add("token", token)
	files := map[string]bool{}
	for _, p := range []string{"sh", "cat", "head", "sleep", "printf", "true"} {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		add("/bin/"+p, data)
		out, err := exec.CommandContext(t.Context(), "ldd", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
			files[lib] = true
		}
	}
	for lib := range files {
		data, err := os.ReadFile(lib)
		if err != nil {
			t.Fatal(err)
		}
		add(lib, data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func startQEMU(t *testing.T, vmlinux, initrd string, hz int, g realGuest) {
	t.Helper()
	cmdline := "console=ttyS0 quiet panic=-1 reboot=t no_timer_check"
	if m := regexp.MustCompile(`cpu MHz\s*: (\d+)\.(\d{3})`).FindStringSubmatch(readFile(t, "/proc/cpuinfo")); m != nil {
		var khz int
		fmt.Sscan(m[1]+m[2], &khz)
		cmdline += fmt.Sprintf(" tsc_early_khz=%d lpj=%d", khz, khz*1000/hz)
	}
	console := filepath.Join(t.TempDir(), "console")
	args := []string{"-M", "microvm,accel=tcg,rtc=on", "-cpu", "max", "-smp", "1", "-m", "512", "-nodefaults",
		"-no-user-config", "-display", "none", "-no-reboot", "-serial", "file:" + console,
		"-kernel", vmlinux, "-initrd", initrd, "-append", cmdline, "-device", "virtio-serial-device"}
	for name, path := range map[string]string{wire.SerialName: g.agent.Path, "banger.floor": g.floor} {
		id := strings.ReplaceAll(name, ".", "-")
		args = append(args, "-chardev", "socket,id="+id+",server=on,wait=off,path="+path,
			"-device", "virtserialport,chardev="+id+",name="+name)
	}
	for _, rom := range []string{"/usr/share/qemu/qboot.rom", "/usr/share/seabios/qboot.rom"} {
		if _, err := os.Stat(rom); err == nil {
			args = append(args, "-bios", rom)
			break
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Logf("qemu: %s\nconsole: %s", out.String(), readFile(t, console))
		}
	})
}

func readFile(t *testing.T, name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		t.Log(err)
	}
	return string(b)
}

// speed measures a warm command beside the floor, and the bytes per second.
func (g realGuest) speed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := g.dial(t)
	floor, err := net.Dial("unix", g.floor)
	if err != nil {
		t.Fatal(err)
	}
	defer floor.Close()
	b := make([]byte, 1)
	var ours, floors, hellos []time.Duration
	for range 31 {
		hellos = append(hellos, timed(t, func() error { _, err := c.Hello(ctx); return err }))
		ours = append(ours, timed(t, func() error {
			_, _, exit, err := guesttest.Run(ctx, c, wire.ExecRequest{Argv: []string{"true"}}, nil)
			if err == nil && exit.Code != 0 {
				err = errors.New("true is false")
			}
			return err
		}))
		floors = append(floors, timed(t, func() error {
			floor.Write(b)
			_, err := io.ReadFull(floor, b)
			return err
		}))
	}
	a, f := median(ours), median(floors)
	t.Logf("exec true: %v, floor %v (%.2f), hello %v", a, f, float64(a)/float64(f), median(hellos))
	if a > 80*time.Millisecond && a > 2*f {
		t.Errorf("a warm command takes %v, the floor %v", a, f)
	}
	const size = 32 << 20
	in := timed(t, func() error {
		_, _, _, err := guesttest.Run(ctx, c, wire.ExecRequest{Argv: []string{"sh", "-c", "cat >/dev/null"}}, make([]byte, size))
		return err
	})
	out := timed(t, func() error {
		_, _, _, err := guesttest.Run(ctx, c, wire.ExecRequest{Argv: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}}, nil)
		return err
	})
	inside := timed(t, func() error {
		_, _, _, err := guesttest.Run(ctx, c, wire.ExecRequest{Argv: []string{"sh", "-c", fmt.Sprintf("head -c %d /dev/zero | cat >/dev/null", size)}}, nil)
		return err
	})
	t.Logf("through a command: to the guest %.0f MB/s, from it %.0f MB/s; a pipe inside %.0f MB/s",
		size/1e6/in.Seconds(), size/1e6/out.Seconds(), size/1e6/inside.Seconds())
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "big", Mode: 0o600, Size: size}); err != nil {
		t.Fatal(err)
	}
	w.Write(make([]byte, size))
	w.Close()
	in = timed(t, func() error {
		_, err := c.TarIn(ctx, wire.TarInRequest{Dir: "/tmp"}, &archive)
		return err
	})
	out = timed(t, func() error {
		_, err := c.TarOut(ctx, wire.TarOutRequest{Dir: "/tmp", Paths: []string{"big"}}, io.Discard)
		return err
	})
	t.Logf("as files: to the guest %.0f MB/s, from it %.0f MB/s", size/1e6/in.Seconds(), size/1e6/out.Seconds())
}

func timed(t *testing.T, f func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := f(); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
