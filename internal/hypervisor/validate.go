package hypervisor

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"regexp"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
)

// Limits of what a Spec may ask for, whatever the driver.
const (
	MinMemory = 64 << 20
	MaxMemory = 1 << 40
	MaxDisks  = 16
	MaxNets   = 4
	maxSerial = 20 // bytes of a virtio-blk serial number
	minMTU    = 68
	maxMTU    = 65535
	// MaxCmdline leaves room for what a driver appends to the kernel's 2048.
	MaxCmdline = 1600
)

var (
	machineID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)
	deviceID  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*$`)
)

// Validate checks a Spec against what every driver requires and host can do.
// It looks at files and changes nothing. Errors are of kind Invalid (a bad
// value), NotFound (a file that is not there) or Unsupported (host cannot).
func Validate(spec Spec, host Host) error {
	for _, check := range []func(Spec, Host) error{checkNames, checkSizes, checkBoot, checkDevices, checkCaps} {
		if err := check(spec, host); err != nil {
			return err
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return errs.New(errs.Invalid, "machine_spec_invalid", format, args...)
}

func checkNames(s Spec, _ Host) error {
	if !machineID.MatchString(s.ID) {
		return invalid("machine id %q is not 1 to 40 of a-z, 0-9 and -", s.ID)
	}
	for what, dir := range map[string]string{"directory": s.Dir, "socket directory": s.SockDir} {
		if !filepath.IsAbs(dir) {
			return invalid("%s %q of machine %s is not absolute", what, dir, s.ID)
		}
		fi, err := os.Stat(dir)
		if err != nil {
			return errs.Wrap(err, errs.NotFound, "machine_dir_missing", "%s of machine %s", what, s.ID)
		}
		if !fi.IsDir() {
			return invalid("%s %s is not a directory", what, dir)
		}
	}
	for _, name := range []string{paths.ControlSock, paths.AgentSock, paths.ConsoleSock} {
		if p := filepath.Join(s.SockDir, name); len(p) > paths.MaxSocket {
			return invalid("socket path %s is %d bytes long, more than %d", p, len(p), paths.MaxSocket)
		}
	}
	return nil
}

func checkSizes(s Spec, h Host) error {
	if s.CPUs < 1 {
		return invalid("%d cpus: a machine needs at least 1", s.CPUs)
	}
	if h.Caps.MaxCPUs > 0 && s.CPUs > h.Caps.MaxCPUs {
		return invalid("%d cpus: %s runs at most %d here", s.CPUs, h.Driver, h.Caps.MaxCPUs)
	}
	if s.Memory < MinMemory || s.Memory > MaxMemory {
		return invalid("%d bytes of memory: must be from %d MiB to %d GiB", s.Memory, MinMemory>>20, MaxMemory>>30)
	}
	if s.Memory%(1<<20) != 0 {
		return invalid("%d bytes of memory: must be whole MiB", s.Memory)
	}
	if s.CodeBuffer < 0 || s.CodeBuffer%(1<<20) != 0 {
		return invalid("code buffer of %d bytes: must be whole MiB", s.CodeBuffer)
	}
	if s.KernelHZ < 0 || s.KernelHZ > 1000 {
		return invalid("kernel HZ %d is out of range", s.KernelHZ)
	}
	return nil
}

func checkBoot(s Spec, _ Host) error {
	if s.Restore == nil { // otherwise they are in the RAM file
		if err := regular("kernel", s.Kernel); err != nil {
			return err
		}
		if s.Initrd != "" {
			if err := regular("initramfs", s.Initrd); err != nil {
				return err
			}
		}
	}
	if len(s.Cmdline) > MaxCmdline {
		return invalid("kernel command line is %d bytes long, more than %d", len(s.Cmdline), MaxCmdline)
	}
	for _, r := range s.Cmdline {
		if r < ' ' || r == 0x7f {
			return invalid("kernel command line holds the control character %#x", r)
		}
	}
	if s.Restore != nil {
		if s.RAM.Path == "" || s.RAM.Shared {
			return invalid("a saved state needs its RAM file, mapped privately")
		}
		if err := regular("device state", s.Restore.Devices); err != nil {
			return err
		}
	}
	return checkRAM(s)
}

func checkRAM(s Spec) error {
	switch {
	case s.RAM.Path == "" && s.RAM.Shared:
		return invalid("shared RAM needs a file")
	case s.RAM.Path == "":
		return nil
	case !filepath.IsAbs(s.RAM.Path):
		return invalid("RAM file %q is not absolute", s.RAM.Path)
	case s.RAM.Shared:
		if _, err := os.Lstat(s.RAM.Path); err == nil {
			return errs.New(errs.Conflict, "ram_file_exists", "RAM file %s exists", s.RAM.Path)
		}
		return nil
	}
	if err := regular("RAM file", s.RAM.Path); err != nil {
		return err
	}
	fi, err := os.Stat(s.RAM.Path)
	if err != nil {
		return errs.Wrap(err, errs.NotFound, "machine_file_missing", "RAM file")
	}
	if fi.Size() != s.Memory {
		return invalid("RAM file %s is %d bytes, the machine's memory %d", s.RAM.Path, fi.Size(), s.Memory)
	}
	return nil
}

// regular checks that path is an absolute regular file.
func regular(what, path string) error {
	if !filepath.IsAbs(path) {
		return invalid("%s %q is not an absolute path", what, path)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return errs.Wrap(err, errs.NotFound, "machine_file_missing", "%s", what)
	}
	if !fi.Mode().IsRegular() {
		return invalid("%s %s is not a regular file", what, path)
	}
	return nil
}

func checkDevices(s Spec, _ Host) error {
	if len(s.Disks) > MaxDisks || len(s.Nets) > MaxNets {
		return invalid("%d disks and %d networks: at most %d and %d", len(s.Disks), len(s.Nets), MaxDisks, MaxNets)
	}
	seen := map[string]bool{}
	for _, d := range s.Disks {
		if !deviceID.MatchString(d.ID) || len(d.ID) > maxSerial || seen[d.ID] {
			return invalid("disk id %q is not a new name of 1 to %d letters and digits", d.ID, maxSerial)
		}
		seen[d.ID] = true
		if err := regular("disk "+d.ID, d.Path); err != nil {
			return err
		}
	}
	for _, n := range s.Nets {
		if !deviceID.MatchString(n.ID) || seen[n.ID] {
			return invalid("network id %q is not a new name of letters and digits", n.ID)
		}
		seen[n.ID] = true
		if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("network %s: %q is not a unicast MAC address", n.ID, n.MAC)
		}
		if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
			return invalid("network %s: MTU %d is not from %d to %d", n.ID, n.MTU, minMTU, maxMTU)
		}
	}
	if s.Console.Socket != "" && s.Console.Log != "" {
		return invalid("a console goes to a socket or to a file, not to both")
	}
	return nil
}

func checkCaps(s Spec, h Host) error {
	unsupported := func(what string) error {
		return errs.New(errs.Unsupported, "machine_spec_unsupported", "%s cannot do %s here", h.Driver, what)
	}
	if !h.Caps.Snapshot && (s.Restore != nil || s.RAM.Path != "") {
		return unsupported("saved states")
	}
	for _, n := range s.Nets {
		switch {
		case n.TAP != "" && n.File == nil:
			if !h.Caps.TAPByName {
				return unsupported("TAP interfaces by name")
			}
		case n.File == nil:
			return invalid("network %s has neither a file nor a TAP interface", n.ID)
		case n.TAP != "" && !h.Caps.TAP:
			return unsupported("TAP interfaces")
		case n.TAP == "" && !h.Caps.UserNet:
			return unsupported("networks over a stream socket")
		}
	}
	return nil
}

// KillRef ends the machine that ref names without its control channel, for
// machines that cannot be adopted. It is nil when it is gone already.
func KillRef(ctx context.Context, ref Ref) error {
	if err := proc.Kill(ctx, ref.Process); err != nil {
		return errs.Wrap(err, errs.Internal, "machine_kill_failed", "kill machine %s", ref.ID)
	}
	return nil
}
