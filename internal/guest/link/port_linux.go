package link

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is a guest's open virtio-serial port. Reads and writes wait while no
// host is connected; the loss of one is told once, by ErrHostGone from Read.
type Port struct {
	file *os.File
	raw  syscall.RawConn
	gone bool
}

// OpenPort opens the virtio-serial port of that name. Only one opener at a
// time is let in by the kernel (EBUSY). fs.ErrNotExist while the kernel has
// not found the port.
func OpenPort(name string) (*Port, error) {
	dev, err := findPort("/sys/class/virtio-ports", name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/"+dev, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/" + dev, Err: err}
	}
	f := os.NewFile(uintptr(fd), "/dev/"+dev)
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Port{file: f, raw: raw, gone: true}, nil
}

// findPort finds a port's device by its name without udev's links.
func findPort(class, name string) (string, error) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(b)) == name {
			return e.Name(), nil
		}
	}
	return "", fmt.Errorf("virtio-serial port %q: %w", name, os.ErrNotExist)
}

// Read reads what a host sent. The driver answers 0 while none is connected
// and wakes its pollers when that changes.
func (p *Port) Read(b []byte) (int, error) {
	var n int
	var err error
	waitErr := p.raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Read(int(fd), b); err != unix.EINTR {
				break
			}
		}
		switch {
		case err == unix.EAGAIN:
			p.gone = false
			return false
		case err == nil && n == 0:
			if p.gone {
				return false
			}
			p.gone = true
			err = ErrHostGone
		case err == nil:
			p.gone = false
		}
		return true
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return max(n, 0), err
}

// Write writes all of b, waiting for a host and for room.
func (p *Port) Write(b []byte) (int, error) { return p.file.Write(b) }

// SetReadDeadline bounds waiting reads.
func (p *Port) SetReadDeadline(t time.Time) error { return p.file.SetReadDeadline(t) }

// SetWriteDeadline bounds waiting writes.
func (p *Port) SetWriteDeadline(t time.Time) error { return p.file.SetWriteDeadline(t) }

// Close closes the port and unblocks its users.
func (p *Port) Close() error { return p.file.Close() }
