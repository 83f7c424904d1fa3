// Command floor is the least guest that can run a command: an init that mounts
// the image read-only, and for each byte on the agent's port does one thing
// and answers with one byte. What banger adds is measured against it.
//
//	x      fork and exec /bin/true in the image
//	r<n>   read n bytes (8 digits of KiB) and drop them
//	w<n>   write n bytes
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	fmt.Println("floor: ended:", serve())
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func serve() error {
	for _, m := range [][2]string{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m[0], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[1], m[0], m[1], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	list, err := os.ReadFile("/banger/modules")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		flags := 0
		if strings.HasSuffix(path, ".xz") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	disk, err := find("/sys/block/vd*/serial", "image")
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/image", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev/"+filepath.Base(filepath.Dir(disk)), "/image", "ext4", unix.MS_RDONLY, "noload"); err != nil {
		return err
	}
	port, err := find("/sys/class/virtio-ports/*/name", "banger.agent")
	if err != nil {
		return err
	}
	p, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(port)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return answer(p)
}

// find gives the file of a pattern that holds a text; devices may take a while.
func find(pattern, text string) (string, error) {
	for range 1_000_000 {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == text {
				return n, nil
			}
		}
	}
	return "", fmt.Errorf("nothing at %s is %s", pattern, text)
}

func answer(p *os.File) error {
	buf := make([]byte, 64<<10)
	cmd := make([]byte, 9)
	for {
		n, err := p.Read(cmd[:1])
		if n == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			wait(p) // nobody is connected on the host's side
			continue
		}
		if cmd[0] == 'x' {
			if err := run(); err != nil {
				return err
			}
		} else {
			if _, err := io.ReadFull(p, cmd[1:]); err != nil {
				return err
			}
			kib, err := strconv.Atoi(string(cmd[1:]))
			if err != nil {
				return err
			}
			if err := move(p, cmd[0], int64(kib)<<10, buf); err != nil {
				return err
			}
		}
		if _, err := p.Write([]byte{'.'}); err != nil {
			return err
		}
	}
}

func wait(p *os.File) {
	fds := []unix.PollFd{{Fd: int32(p.Fd()), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, 10)
}

func run() error {
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{
		Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/", Sys: &syscall.SysProcAttr{Chroot: "/image"},
	})
	if err != nil {
		return err
	}
	_, err = syscall.Wait4(pid, nil, 0, nil)
	return err
}

func move(p *os.File, verb byte, left int64, buf []byte) error {
	for left > 0 {
		b := buf[:min(left, int64(len(buf)))]
		var n int
		var err error
		if verb == 'r' {
			n, err = p.Read(b)
		} else {
			n, err = p.Write(b)
		}
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
