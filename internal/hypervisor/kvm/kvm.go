// Package kvm finds out whether KVM runs guests on this host. That /dev/kvm
// opens proves nothing: on some virtual machines it opens, makes VMs and
// cannot run an ordinary kernel. So the probe wants the CPU's flag and sees a
// guest instruction executed. It starts no hypervisor and keeps nothing open.
package kvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Device is where the kernel offers KVM.
const Device = "/dev/kvm"

// limit bounds the guest's two instructions.
const limit = 2 * time.Second

// Result says whether KVM is usable. Why is one line when it is not, "" when
// it is.
type Result struct {
	Usable bool
	Why    string
}

// Inputs are what the probe looks at; a nil one is this host's. Tests put
// other hosts in.
type Inputs struct {
	// Open says whether the device can be opened for reading and writing.
	Open func() error
	// CPUFlags are the CPU's flags as the kernel names them.
	CPUFlags func() ([]string, error)
	// RunGuest runs a tiny real-mode guest to its halt within ctx.
	RunGuest func(ctx context.Context) error
}

// Probe proves that KVM is usable, or says why it is not. It takes at most two
// seconds.
func Probe(ctx context.Context, in Inputs) Result {
	if in.Open == nil {
		in.Open = openDevice
	}
	if in.CPUFlags == nil {
		in.CPUFlags = hostFlags
	}
	if in.RunGuest == nil {
		in.RunGuest = runGuest
	}
	if err := in.Open(); err != nil {
		return Result{Why: whyClosed(err)}
	}
	flags, err := in.CPUFlags()
	if err != nil {
		return Result{Why: fmt.Sprintf("%s opens, but the CPU's flags cannot be read: %v", Device, err)}
	}
	if !has(flags, "svm") && !has(flags, "vmx") {
		why := "the CPU has neither the svm nor the vmx flag"
		if has(flags, "hypervisor") {
			why += ": this machine is a VM without nested virtualization"
		} else {
			why += ": virtualization is switched off in the firmware, or missing"
		}
		return Result{Why: Device + " opens, but " + why}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := in.RunGuest(ctx); err != nil {
		return Result{Why: fmt.Sprintf("%s opens, but a test guest did not run: %v", Device, err)}
	}
	return Result{Usable: true}
}

func openDevice() error {
	fd, err := unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func whyClosed(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Device + " does not exist: the kernel's kvm module is not loaded, or the CPU cannot virtualize"
	case errors.Is(err, os.ErrPermission):
		return Device + " may not be opened by this user: join its group (sudo usermod -aG kvm $USER, then log in again)"
	}
	return fmt.Sprintf("%s cannot be opened: %v", Device, err)
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

func hostFlags() ([]string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseFlags(f)
}

// parseFlags gives the flags of the first CPU in a /proc/cpuinfo.
func parseFlags(r io.Reader) ([]string, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		key, value, ok := strings.Cut(sc.Text(), ":")
		if k := strings.TrimSpace(key); ok && (k == "flags" || k == "Features") {
			return strings.Fields(value), nil
		}
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	return nil, errors.New("no flags are listed")
}
