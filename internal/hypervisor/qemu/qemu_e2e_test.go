//go:build e2e

package qemu_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/hypervisortest"
	"github.com/banger-dev/banger/internal/hypervisor/hypervisortest/guestimage"
	"github.com/banger-dev/banger/internal/hypervisor/qemu"
	"github.com/banger-dev/banger/internal/launch"
)

// subject is this driver with a QEMU ("" for the host's).
func subject(t *testing.T, binary string) hypervisortest.Subject {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	img := guestimage.New(t, t.TempDir())
	return hypervisortest.Subject{
		New: func(testing.TB) hypervisor.Driver {
			return qemu.New(qemu.Options{Binary: binary, Launcher: []string{exe, launch.Verb}})
		},
		Kernel: img.Kernel, Initrd: img.Initrd, HZ: img.HZ,
	}
}

// TestSuiteHostQEMU runs the suite with the host's QEMU: Debian 12's 7.2 where
// `make test` runs.
func TestSuiteHostQEMU(t *testing.T) { hypervisortest.Run(t, subject(t, "")) }

// TestSuiteDebian13QEMU runs the suite with the QEMU of Debian 13, out of a
// root file system of its own.
func TestSuiteDebian13QEMU(t *testing.T) {
	binary := debian13(t)
	host, err := qemu.New(qemu.Options{Binary: binary}).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(host.Version, "10.") {
		t.Errorf("Debian 13's QEMU says it is %s", host.Version)
	}
	hypervisortest.Run(t, subject(t, binary))
}

// debian13 gives a program that runs Debian 13's QEMU with its own libraries,
// by their own loader: nothing is mounted and no privilege is needed to run it.
func debian13(t *testing.T) string {
	t.Helper()
	root := filepath.Join(guestimage.Cache(t), "debian13-qemu")
	if _, err := os.Stat(root); err != nil {
		fetchDebian13(t, root)
	}
	return wrapper(t, root, t.TempDir())
}

// wrapper makes a script in dir that runs the QEMU of root.
func wrapper(t *testing.T, root, dir string) string {
	t.Helper()
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	script := fmt.Sprintf(`#!/bin/sh
export QEMU_MODULE_DIR='%[2]s/qemu'
exec '%[2]s/ld-linux-x86-64.so.2' --library-path '%[2]s:%[2]s/pulseaudio' \
	'%[1]s/usr/bin/qemu-system-x86_64' -L '%[1]s/usr/share/qemu' -L '%[1]s/usr/share/seabios' "$@"
`, root, lib)
	path := filepath.Join(dir, "qemu-system-x86_64")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func fetchDebian13(t *testing.T, root string) {
	t.Helper()
	dir := t.TempDir()
	tar := filepath.Join(dir, "root.tar")
	unpacked := root + ".new"
	if err := os.RemoveAll(unpacked); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"mmdebstrap", "--variant=minbase", "--include=qemu-system-x86", "trixie", tar},
		{"tar", "-C", unpacked, "-xf", tar, "--no-same-owner", "--wildcards", "./usr/bin/qemu-system-x86_64", "./usr/lib/x86_64-linux-gnu", "./usr/share/qemu", "./usr/share/seabios"},
	} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out[max(0, len(out)-2000):])
		}
	}
	if err := os.Rename(unpacked, root); err != nil {
		t.Fatal(err)
	}
}

// TestAnotherDaemonSavesTheMachine has a process that is not QEMU's parent
// read its memory, which the launcher asked the kernel to allow.
func TestAnotherDaemonSavesTheMachine(t *testing.T) {
	s := subject(t, "")
	spec := s.Spec(t, "elsewhere")
	m := hypervisortest.Start(t, s.New(t), spec)
	port := hypervisortest.Dial(t, m.Ref().Endpoint)
	port.Expect("set kept by another", "ok")
	port.Expect("fill 8", "ok")
	sum := port.Ask("sum")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}

	ref, err := json.Marshal(m.Ref())
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	store := t.TempDir()
	cmd := exec.CommandContext(t.Context(), exe, saveVerb, store)
	cmd.Stdin = bytes.NewReader(ref)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	port.Expect("get", "kept by another") // the connection outlived it all

	clone := s.Spec(t, "clone")
	clone.RAM.Path = store + "/ram"
	clone.Restore = &hypervisor.Restore{Devices: store + "/devices"}
	c := hypervisortest.Start(t, s.New(t), clone)
	p := hypervisortest.Dial(t, c.Ref().Endpoint)
	p.Expect("get", "kept by another")
	p.Expect("sum", sum)
}

// TestColdBootsUnderLoad boots again and again while every core is kept busy:
// where guests calibrate their clocks, one boot in three hangs.
func TestColdBootsUnderLoad(t *testing.T) {
	boots := 3
	if os.Getenv("BANGER_SOAK") != "" {
		boots = 30
	}
	s := subject(t, "")
	d := s.New(t)
	host, err := d.Probe(t.Context()) // measures the clock under load too
	if err != nil {
		t.Fatal(err)
	}
	for range runtime.NumCPU() {
		burn := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
		if err := burn.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { burn.Process.Kill(); burn.Wait() })
	}
	for i := range boots {
		spec := s.Spec(t, "boot")
		began := time.Now()
		m := hypervisortest.Start(t, d, spec)
		got, err := hypervisortest.Dial(t, m.Ref().Endpoint).Try(host.Caps.BootTimeout, "ping x")
		if err != nil || got != "pong x" {
			t.Fatalf("boot %d of %d: %q, %v", i+1, boots, got, err)
		}
		t.Logf("boot %d: %v", i+1, time.Since(began).Round(time.Millisecond))
		if err := m.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUserOfItsOwn: as root, each hypervisor is another user, with no
// capability, that can write to nobody else's files.
func TestUserOfItsOwn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a hypervisor a user of its own; CI and `make test` as root run this")
	}
	user := &hypervisor.Credential{UID: 812345, GID: 812345}
	t.Run("Host", func(t *testing.T) {
		s := subject(t, "")
		s.User = user
		t.Run("Clones", s.Clones)
		t.Run("Confined", func(t *testing.T) { confined(t, s) })
		t.Run("NoCopy", func(t *testing.T) { noCopy(t, s) })
	})
	t.Run("Debian13", func(t *testing.T) {
		s := subject(t, publicCopy(t))
		s.User = user
		t.Run("Clones", s.Clones)
		t.Run("Confined", func(t *testing.T) { confined(t, s) })
		t.Run("NoCopy", func(t *testing.T) { noCopy(t, s) })
	})
}

// publicCopy gives Debian 13's QEMU where another user may run it, as what is
// installed may be: the cache can lie in a home that is closed.
func publicCopy(t *testing.T) string {
	t.Helper()
	debian13(t) // fetches
	dir, err := os.MkdirTemp("", "qemu13")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	root := filepath.Join(dir, "root")
	from := filepath.Join(guestimage.Cache(t), "debian13-qemu")
	if exec.CommandContext(t.Context(), "cp", "-al", from, root).Run() != nil { // another file system
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, root).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return wrapper(t, root, dir)
}

// noCopy: a clone maps the template itself, which its user may only read.
func noCopy(t *testing.T, s hypervisortest.Subject) {
	spec := s.Spec(t, "nocopy")
	ram := filepath.Join(t.TempDir(), "ram")
	f, err := os.OpenFile(ram, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(spec.Memory); err != nil {
		t.Fatal(err)
	}
	spec.RAM.Path = ram
	m := hypervisortest.Start(t, s.New(t), spec)
	hypervisortest.Dial(t, m.Ref().Endpoint).Expect("ping x", "pong x")
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(m.Ref().Process.PID) + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	mapped := false
	for line := range strings.Lines(string(maps)) {
		mapped = mapped || strings.Contains(line, " rw-p ") && strings.HasSuffix(line, " "+ram+"\n")
	}
	if !mapped {
		t.Error("its RAM is not the file, mapped privately")
	}
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(m.Ref().Process.PID) + "/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range fds {
		target, err := os.Readlink(strings.Replace(info, "/fdinfo/", "/fd/", 1))
		if err == nil && target == ram && accessMode(t, info) != os.O_RDONLY {
			t.Error("it holds the file open for writing")
		}
	}
	if fi, err := f.Stat(); err != nil || fi.Sys().(*syscall.Stat_t).Blocks != 0 {
		t.Errorf("the file was written to: %v, %v", fi, err)
	}
}

func confined(t *testing.T, s hypervisortest.Subject) {
	spec := s.Spec(t, "confined")
	spec.Disks = []hypervisor.Disk{hypervisortest.Disk(t, spec, "image", 1<<20, true), hypervisortest.Disk(t, spec, "work", 1<<20, false)}
	m := hypervisortest.Start(t, s.New(t), spec)
	hypervisortest.Dial(t, m.Ref().Endpoint).Expect("write vdb x", "ok")
	proc := "/proc/" + strconv.Itoa(m.Ref().Process.PID)
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nUid:\t812345\t812345\t812345\t812345\n", "\nGid:\t812345\t812345\t812345\t812345\n", "\nGroups:\t \n",
		"\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n", "\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n", "\nCapBnd:\t0000000000000000\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("%q is not in its status", want)
		}
	}
	// What it holds open for writing is its own: sockets, disk, console, log.
	fds, err := os.ReadDir(proc + "/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		spec.Disks[1].Path: true, spec.Console.Log: true, m.Ref().Log: true, "/dev/null": true,
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err != nil || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/memfd:") {
			continue
		}
		if flags := accessMode(t, filepath.Join(proc, "fdinfo", fd.Name())); flags != os.O_RDONLY && !allowed[target] && !private(target, spec.Dir) {
			t.Errorf("it holds %s open for writing", target)
		}
	}
	// What it could open: as its user, without the daemon's right to all.
	for _, path := range []string{spec.Dir, spec.SockDir, m.Ref().Control, m.Ref().Endpoint.Path, spec.Disks[0].Path, spec.Disks[1].Path, spec.Kernel, spec.Initrd} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s can be written by others: %v", path, fi.Mode())
		}
	}
}

// private says that a file has no name: a copy made for this machine alone.
func private(target, dir string) bool {
	return strings.HasPrefix(target, dir+"/#") && strings.HasSuffix(target, " (deleted)")
}

func accessMode(t *testing.T, fdinfo string) int {
	t.Helper()
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "flags:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 8, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n) & (os.O_WRONLY | os.O_RDWR)
		}
	}
	t.Fatalf("no flags in %s", fdinfo)
	return 0
}
