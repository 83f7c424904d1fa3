// Package boot is PID 1 of a guest, from the kernel's first process to the
// image's own init: it mounts what a system needs, loads the modules the
// initramfs carries, lays the writable layer over the image, starts the
// long-lived agent, and then either becomes the image's init, when the agent
// says so, or stays as the one that reaps and stops the machine.
//
// It runs no program but the agent and reads no file of the image before the
// agent answers. What it writes goes through agent/inroot, so that an image
// cannot lead it astray. Identity is not given here (agent/identity).
package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/disks"
	"github.com/banger-dev/banger/internal/agent/inroot"
)

// diskWait bounds how long the boot waits for the disks the seed names.
const diskWait = 20 * time.Second

// chain is one boot: what its steps learn and hand on.
type chain struct {
	opts     options
	seed     Seed
	watch    *disks.Watch
	found    disks.Found
	root     *inroot.Root // the overlay, mounted at newRoot
	system   *os.File     // root directory of the system disk, or nil
	warnings []string
	steps    []Step

	modulesAt string // where the kernel's modules are mounted, or ""
}

// Step is a part of the boot with the time it took.
type Step struct {
	Name   string `json:"name"`
	Micros int64  `json:"us"`
}

// Init is PID 1. It returns only when the boot failed or the agent ended, and
// there is nothing left to run; the caller then stops the machine with the
// error as last word.
func Init(ctx context.Context) error {
	c := &chain{}
	for _, s := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"mounts", c.mountEarly},
		{"seed", c.readSeed},
		{"modules", c.loadModules},
		{"disks", c.waitDisks},
		{"overlay", c.mountRoot},
		{"storage", c.mountStorage},
		{"home", c.mountHome},
		{"kernel", c.mountModules},
		{"system", c.mountSystem},
		{"switch", c.switchRoot},
	} {
		start := time.Now()
		err := s.run(ctx)
		c.step(s.name, start)
		if err != nil {
			return fmt.Errorf("boot failed: %s: %w", s.name, err)
		}
	}
	return c.supervise(ctx)
}

func (c *chain) step(name string, start time.Time) {
	d := time.Since(start)
	c.steps = append(c.steps, Step{Name: name, Micros: d.Microseconds()})
	if c.opts.trace {
		var up unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
		logf("%-8s %6.1f ms, at %.1f of uptime", name, ms(d), ms(time.Duration(up.Nano())))
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// warn notes what went wrong but need not stop the boot; the host is told
// with the first identity.
func (c *chain) warn(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	c.warnings = append(c.warnings, w)
	logf("warning: %s", w)
}

// logf writes a line to the console and nowhere else.
func logf(format string, args ...any) {
	line := "banger: " + strings.TrimSpace(fmt.Sprintf(format, args...)) + "\n"
	_, _ = os.Stderr.WriteString(line)
}

// mountEarly mounts what the steps after it read.
func (c *chain) mountEarly(context.Context) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		data      string
	}{
		{"proc", "/proc", safe, ""},
		{"sysfs", "/sys", safe, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=755"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=20%"},
	} {
		if err := mountNew(m.kind, m.dir, m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	c.opts = parseOptions(string(cmdline))
	return nil
}

// mountNew mounts over a directory that it makes where it is missing.
func mountNew(source, dir, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, kind, flags, data); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s at %s: %w", kind, dir, err)
	}
	return nil
}

func (c *chain) readSeed(context.Context) (err error) {
	c.seed, err = takeSeed()
	return err
}

// loadModules loads what the root filesystem needs. A module that will not
// load is a warning: the disks say whether it mattered.
func (c *chain) loadModules(context.Context) error {
	var err error
	if c.watch, err = disks.NewWatch(); err != nil {
		return err
	}
	list, err := os.ReadFile(ModulesPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil // everything is built in
	}
	if err != nil {
		return err
	}
	paths, err := ParseModules(string(list))
	if err != nil {
		return err
	}
	for _, p := range paths {
		// vsock is the channel of machines without a virtio-serial port,
		// whose driver is loaded by now.
		if strings.Contains(filepath.Base(p), "vsock") && hasPorts() {
			continue
		}
		start := time.Now()
		if err := loadModule(p); err != nil {
			c.warn("%v", err)
		}
		if c.opts.trace {
			logf("%s %.1f ms", p, ms(time.Since(start)))
		}
	}
	return nil
}

func hasPorts() bool {
	ports, err := os.ReadDir("/sys/class/virtio-ports")
	return err == nil && len(ports) > 0
}

func (c *chain) waitDisks(ctx context.Context) error {
	defer c.watch.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, diskWait, fmt.Errorf("waited %s", diskWait))
	defer cancel()
	var err error
	c.found, err = c.watch.Wait(ctx, c.seed.Disks)
	if err != nil && c.found[disks.Image] != "" {
		c.warn("%v", err)
		return nil
	}
	return err
}
