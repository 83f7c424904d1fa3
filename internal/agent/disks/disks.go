// Package disks finds the guest's disks by the virtio serial that the host
// gave them ("image", "system", "work", "modules"), waits for late ones by the
// kernel's uevents, and grows the ext4 filesystem on one to the size its
// device has got. It mounts nothing.
package disks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The disks of a VM, by virtio serial.
const (
	Image   = "image"   // ext4, read-only: the root filesystem as it came
	System  = "system"  // ext4: what the VM changes in it, and /storage
	Work    = "work"    // ext4: root's home
	Modules = "modules" // ext4, read-only: /lib/modules/RELEASE
)

// Found maps a serial to its kernel name ("vda").
type Found map[string]string

// Device is the device node of the disk with that serial, or "".
func (f Found) Device(serial string) string {
	if f[serial] == "" {
		return ""
	}
	return "/dev/" + f[serial]
}

// Scan reads the serials of all virtio disks beneath sysfs ("/sys"). Where two
// claim the same one, the first in the order of names has it.
func Scan(sysfs string) (Found, error) {
	entries, err := os.ReadDir(filepath.Join(sysfs, "block"))
	if err != nil {
		return nil, err
	}
	found := Found{}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, "vd") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(sysfs, "block", name, "serial"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // taken away meanwhile
		}
		if err != nil {
			return nil, err
		}
		serial := strings.TrimRight(string(b), "\x00\n ")
		if serial != "" && found[serial] == "" {
			found[serial] = name
		}
	}
	return found, nil
}

// Watch is a subscription to the kernel's device events. Open it before the
// drivers are loaded, so that no event falls between a look and a wait.
type Watch struct{ fd int }

// NewWatch subscribes.
func NewWatch() (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("device events: %w", err)
	}
	return &Watch{fd: fd}, nil
}

// Close ends the subscription.
func (w *Watch) Close() error { return unix.Close(w.fd) }

// Wait returns the disks once all of want are there. It looks at once, and
// again after every event; at ctx's end it gives what there is with an error
// that names what is missing.
func (w *Watch) Wait(ctx context.Context, want []string) (Found, error) {
	for {
		found, err := Scan("/sys")
		if err != nil {
			return nil, err
		}
		var missing []string
		for _, serial := range want {
			if found[serial] == "" {
				missing = append(missing, serial)
			}
		}
		if len(missing) == 0 {
			return found, nil
		}
		if ctx.Err() != nil {
			return found, fmt.Errorf("no disk with serial %s: %w", strings.Join(missing, ", "), context.Cause(ctx))
		}
		w.Next(ctx)
	}
}

// Next waits for an event, for at most a second and not beyond ctx's deadline,
// and swallows what else has come.
func (w *Watch) Next(ctx context.Context) {
	limit := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)+time.Millisecond)
	}
	fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, int(limit.Milliseconds()))
	buf := make([]byte, 8<<10)
	for {
		if _, _, err := unix.Recvfrom(w.fd, buf, 0); err != nil && err != unix.EINTR {
			return
		}
	}
}

// Size is the present size of a disk in bytes ("vda").
func Size(sysfs, name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(sysfs, "block", name, "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return sectors * 512, err
}

// Geometry is what a superblock says of an ext4 filesystem's size.
type Geometry struct {
	BlockSize uint64
	Blocks    uint64
}

// ErrNotExt4 is given for bytes that are no ext4 superblock.
var ErrNotExt4 = errors.New("not an ext4 filesystem")

// ParseSuperblock reads the superblock, the 1024 bytes at offset 1024 of the
// device.
func ParseSuperblock(b []byte) (Geometry, error) {
	if len(b) < 1024 || binary.LittleEndian.Uint16(b[0x38:]) != 0xEF53 {
		return Geometry{}, ErrNotExt4
	}
	shift := binary.LittleEndian.Uint32(b[0x18:])
	if shift > 6 {
		return Geometry{}, ErrNotExt4
	}
	g := Geometry{BlockSize: 1024 << shift, Blocks: uint64(binary.LittleEndian.Uint32(b[0x04:]))}
	const incompat64bit = 0x80
	if binary.LittleEndian.Uint32(b[0x60:])&incompat64bit != 0 {
		g.Blocks |= uint64(binary.LittleEndian.Uint32(b[0x150:])) << 32
	}
	if g.Blocks > 1<<48 {
		return Geometry{}, ErrNotExt4
	}
	return g, nil
}

// ReadGeometry reads the superblock of a device or image file.
func ReadGeometry(path string) (Geometry, error) {
	f, err := os.Open(path)
	if err != nil {
		return Geometry{}, err
	}
	defer f.Close()
	b := make([]byte, 1024)
	if _, err := f.ReadAt(b, 1024); err != nil {
		return Geometry{}, err
	}
	return ParseSuperblock(b)
}

// resizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64).
const resizeFS = 0x40086610

// Grow enlarges the mounted filesystem that mounted is open on (a directory of
// it) to the size of its device ("vda"), and says whether it had to.
func Grow(name string, mounted *os.File) (bool, error) {
	size, err := Size("/sys", name)
	if err != nil {
		return false, err
	}
	g, err := ReadGeometry("/dev/" + name)
	if err != nil {
		return false, fmt.Errorf("grow %s: %w", name, err)
	}
	blocks := uint64(size) / g.BlockSize
	// A last group too small to hold its own tables is left away by the
	// kernel: less than that is nothing to grow by.
	const least = 64
	if blocks < g.Blocks+least {
		return false, nil
	}
	if err := ioctlPointer(mounted, resizeFS, &blocks); err != nil {
		return false, fmt.Errorf("grow %s to %d blocks of %d: %w", name, blocks, g.BlockSize, err)
	}
	return true, nil
}
