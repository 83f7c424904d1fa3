// Package system is the guest as a whole, as the agent's server sees it: who
// the guest is, how it is, and how it stops. It implements agent.System on a
// real guest, between PID 1 (agent/boot) and what the image's init does. It
// runs no commands for the host and moves no files; that is agent's.
package system

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/agent/disks"
	"github.com/banger-dev/banger/internal/agent/identity"
	"github.com/banger-dev/banger/internal/agent/inroot"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// homeDir is root's home: the work disk, where there is one.
const homeDir = "/root"

// PID1 is the agent's line to PID 1. *boot.Control is the real one.
type PID1 interface {
	// Handover makes PID 1 the image's init, once.
	Handover() error
	// Handed says whether that has happened.
	Handed() bool
	// Stop ends everything and stops the machine, where PID 1 is still
	// banger's; otherwise it is false.
	Stop(reboot bool) (bool, error)
}

// System is a guest.
type System struct {
	pid1    PID1
	handoff boot.Handoff
	disk    *os.File // the system disk's filesystem, or nil
	version func() string

	// life ends with the agent; what outlasts a call runs in it.
	life context.Context

	mu       sync.Mutex
	token    []byte
	hostKey  []byte
	keys     []string
	warnings []string // of the boot, until the first identity took them
	stopping bool

	identity sync.Mutex // one identity at a time
	machine  *identity.Real
}

var _ PID1 = (*boot.Control)(nil)

// New makes the system of the guest that control's boot brought up. life
// bounds what outlasts a call; version gives the agent's.
func New(life context.Context, control *boot.Control, version func() string) *System {
	h := control.Handoff
	s := &System{
		pid1: control, handoff: h, disk: control.System, version: version,
		life: life, token: h.Token, warnings: h.Warnings,
	}
	s.machine = &identity.Real{Token: s.setToken}
	return s
}

// Token is the present token.
func (s *System) Token() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.token)
}

func (s *System) setToken(token []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = slices.Clone(token)
}

// Info says who the guest is.
func (s *System) Info() wire.HelloReply {
	return wire.HelloReply{
		Version:   wire.Version,
		BootID:    line("/proc/sys/kernel/random/boot_id"),
		Agent:     s.version(),
		State:     s.state(),
		HasInit:   s.handoff.Init != "",
		Kernel:    release(),
		UptimeMS:  uint64(uptime().Milliseconds()),
		ClockUnix: time.Now().UnixNano(),
		Clock:     clockSource(),
	}
}

// The states of a guest in HelloReply.
const (
	stateEarly = "early"
	stateInit  = "init"
	stateAlone = "alone"
)

func (s *System) state() string {
	switch {
	case s.handoff.Init == "":
		return stateAlone
	case s.pid1.Handed():
		return stateInit
	}
	return stateEarly
}

// Identity makes the guest the VM named. The warnings of the boot come with
// the first.
func (s *System) Identity(ctx context.Context, id wire.Identity) (wire.IdentityReply, error) {
	reply, err := s.apply(ctx, id)
	if err != nil {
		return reply, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hostKey, s.keys = id.HostKey, id.Authorized
	reply.Warnings = append(s.warnings, reply.Warnings...)
	s.warnings = nil
	return reply, nil
}

func (s *System) apply(ctx context.Context, id wire.Identity) (wire.IdentityReply, error) {
	s.identity.Lock()
	defer s.identity.Unlock()
	root, err := inroot.Open("/")
	if err != nil {
		return wire.IdentityReply{}, err
	}
	defer root.Close()
	home, err := inroot.Open(homeDir)
	if err != nil { // the image's /root is no directory
		home = root
	} else {
		defer home.Close()
	}
	g := identity.Guest{Root: root, Home: home, Machine: s.machine}
	return identity.Apply(ctx, g, id)
}

// Handover lets PID 1 become the image's init.
func (s *System) Handover(context.Context) error {
	return errs.Wrap(s.pid1.Handover(), errs.Unavailable, "handover_failed", "start the image's init")
}

// Clock steps the wall clock.
func (s *System) Clock(_ context.Context, req wire.ClockRequest) error {
	if req.UnixNS <= 0 {
		return errs.New(errs.Invalid, "bad_clock", "clock: time %d is before 1970", req.UnixNS)
	}
	err := s.machine.SetClock(time.Unix(0, req.UnixNS))
	return errs.Wrap(err, errs.Internal, "clock_failed", "clock")
}

// Sync writes everything out. A disk that takes its time outlasts ctx.
func (s *System) Sync(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		unix.Sync()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// growWait is how long Grow waits for the kernel to notice a disk's new size.
const growWait = time.Second

// Grow gives the filesystems the size that their disks have got.
func (s *System) Grow(ctx context.Context, req wire.GrowRequest) error {
	for _, serial := range req.Disks {
		if err := s.grow(ctx, serial); err != nil {
			return errs.Wrap(err, errs.Internal, "grow_failed", "grow the %s disk", serial)
		}
	}
	return nil
}

func (s *System) grow(ctx context.Context, serial string) error {
	name := s.handoff.Disks[serial]
	if name == "" || serial != disks.System && serial != disks.Work {
		return errs.New(errs.NotFound, "no_such_disk", "the VM has no %q disk that can grow", serial)
	}
	mounted := s.disk
	if serial == disks.Work {
		f, err := os.Open(homeDir)
		if err != nil {
			return err
		}
		defer f.Close()
		mounted = f
	}
	watch, err := disks.NewWatch()
	if err != nil {
		return err
	}
	defer watch.Close()
	grown, err := disks.Grow(name, mounted)
	if err != nil || grown {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, growWait)
	defer cancel()
	watch.Next(ctx)
	_, err = disks.Grow(name, mounted)
	return err
}

// line reads a file of one line from /proc or /sys, "" where it cannot.
func line(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func clockSource() string {
	return line("/sys/devices/system/clocksource/clocksource0/current_clocksource")
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// logf writes a line to the console.
func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "banger: "+format+"\n", args...)
}
