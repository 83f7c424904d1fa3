// Command guest is the first process of the contract suite's real guest: it
// loads the modules, unpacks the few programs that the suite runs and serves
// the agent on the virtio-serial port. Given "-floor" it is a minimal agent
// instead, which forks a command for every byte it reads.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/wire"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("guest:", err)
		time.Sleep(time.Second) // the console is slower than the end
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"devpts", "/dev/pts"}, {"tmpfs", "/tmp"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		os.MkdirAll(m.at, 0o755)
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	list, err := os.ReadFile("/banger/modules")
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(string(list)) {
		if f, err := os.Open(path); err == nil {
			_ = unix.FinitModule(int(f.Fd()), "", 0) // what matters shows below
			f.Close()
		}
	}
	token, err := unpack("/programs.tar")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go agent.ReapOrphans(ctx)
	floor, err := open("banger.floor")
	if err != nil {
		return err
	}
	go minimal(floor)
	port, err := open(wire.SerialName)
	if err != nil {
		return err
	}
	fmt.Println("guest: serving")
	return agent.NewServer(agent.NewHosted(token, cancel), agent.Options{}).ServePort(ctx, port)
}

// open waits for the port: the kernel finds it a moment after the modules.
func open(name string) (*link.Port, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		port, err := link.OpenPort(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || time.Now().After(end) {
			return port, err
		}
	}
}

// minimal forks and execs true for every byte, and answers with one.
func minimal(port *link.Port) {
	b := make([]byte, 1)
	for {
		if _, err := port.Read(b); errors.Is(err, link.ErrHostGone) {
			continue
		} else if err != nil {
			return
		}
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if err != nil {
			return
		}
		var ws syscall.WaitStatus
		syscall.Wait4(pid, &ws, 0, nil)
		port.Write(b)
	}
}

// unpack puts a tar file's entries where they belong and gives the token.
func unpack(name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var token []byte
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return token, nil
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		if h.Name == "token" {
			token = b
			continue
		}
		os.MkdirAll(filepath.Dir(h.Name), 0o755)
		if err := os.WriteFile(h.Name, b, 0o755); err != nil {
			return nil, err
		}
	}
}
