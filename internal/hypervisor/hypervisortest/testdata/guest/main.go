// Command guest is the init of the conformance suite's guest: as little as
// answers on the agent's port, so that the suite tests hypervisors and not
// banger's agent or image. It counts in memory, reports what the kernel sees,
// and does on request what a guest may do to its hypervisor.
//
// Requests and answers are single lines: "ID VERB [ARG]" gets "ID ANSWER".
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := setUp(); err != nil {
		die(err)
	}
	port, err := openPort()
	if err != nil {
		die(err)
	}
	var g guest
	go g.count()
	fmt.Println("guest: ready")
	die(g.serve(port))
}

// die ends PID 1, which panics the kernel: the suite sees that as a crash.
func die(err error) {
	fmt.Println("guest: died:", err)
	os.Exit(1)
}

func setUp() error {
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	list, err := os.ReadFile("/banger/modules") // what banger's initramfs lists
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", path, err)
		}
		f.Close()
	}
	return nil
}

// openPort waits for the port named banger.agent, which devices make a moment
// after their driver was loaded.
func openPort() (*os.File, error) {
	for range 3000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == "banger.agent" {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("no port banger.agent")
}

type guest struct {
	counter atomic.Int64
	note    string
	ballast [][]byte
}

func (g *guest) count() {
	for {
		g.counter.Add(1)
		time.Sleep(time.Millisecond)
	}
}

func (g *guest) serve(port *os.File) error {
	in := bufio.NewReader(hostReader{port})
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		id, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		verb, arg, _ := strings.Cut(rest, " ")
		answer := g.answer(verb, arg)
		if _, err := fmt.Fprintf(port, "%s %s\n", id, answer); err != nil {
			return err
		}
	}
}

// hostReader reads a virtio port: without a host at the other end a read
// gives nothing, which is no end of file.
type hostReader struct{ f *os.File }

func (r hostReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(r.f.Fd()), b)
		if n > 0 || (err != nil && err != unix.EINTR && err != unix.EAGAIN) {
			return n, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (g *guest) answer(verb, arg string) string {
	n, _ := strconv.Atoi(arg)
	switch verb {
	case "ping":
		return "pong " + arg
	case "count":
		return strconv.FormatInt(g.counter.Load(), 10)
	case "set":
		g.note = arg
		return "ok"
	case "get":
		return g.note
	case "cpus":
		return strconv.Itoa(runtime.NumCPU())
	case "memory":
		return memory()
	case "disks":
		return disks()
	case "cmdline":
		b, err := os.ReadFile("/proc/cmdline")
		return text(strings.TrimSpace(string(b)), err)
	case "nics":
		return nics()
	case "fill": // touches n MiB
		for i := range n {
			g.ballast = append(g.ballast, bytes.Repeat([]byte{byte(i + 1)}, 1<<20))
		}
		return "ok"
	case "sum":
		return g.sum()
	case "console": // writes n KiB on the console
		line := strings.Repeat("x", 63) + "\n"
		for range n * 16 {
			fmt.Print(line)
		}
		return "ok"
	case "write": // device text
		return write(arg)
	case "read": // device
		return read(arg)
	case "size": // device
		b, err := os.ReadFile("/sys/block/" + arg + "/size")
		return text(strings.TrimSpace(string(b)), err)
	case "poweroff":
		return text("ok", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	case "reboot":
		return text("ok", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	case "panic":
		os.Exit(1)
	}
	return "what?"
}

func text(s string, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	return s
}

func memory() string {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return text("", err)
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return "error: no total"
	}
	return f[1] // KiB
}

// disks lists "name:serial:ro:sectors" of every virtio disk.
func disks() string {
	dirs, err := filepath.Glob("/sys/block/vd*")
	if err != nil {
		return text("", err)
	}
	var out []string
	for _, d := range dirs {
		field := func(name string) string {
			b, err := os.ReadFile(filepath.Join(d, name))
			return text(strings.TrimSpace(string(b)), err)
		}
		out = append(out, strings.Join([]string{filepath.Base(d), field("serial"), field("ro"), field("size")}, ":"))
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func nics() string {
	dirs, err := filepath.Glob("/sys/class/net/e*")
	if err != nil {
		return text("", err)
	}
	var out []string
	for _, d := range dirs {
		mac, err := os.ReadFile(filepath.Join(d, "address"))
		if err != nil {
			return text("", err)
		}
		mtu, err := os.ReadFile(filepath.Join(d, "mtu"))
		out = append(out, text(strings.TrimSpace(string(mac))+"/"+strings.TrimSpace(string(mtu)), err))
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func (g *guest) sum() string {
	var s uint64
	for _, b := range g.ballast {
		for i := 0; i < len(b); i += 4096 {
			s = s*31 + uint64(b[i])
		}
	}
	return strconv.FormatUint(s, 10)
}

func write(arg string) string {
	dev, data, _ := strings.Cut(arg, " ")
	f, err := os.OpenFile("/dev/"+dev, os.O_WRONLY, 0)
	if err != nil {
		return text("", err)
	}
	defer f.Close()
	if _, err := f.WriteString(data + "\n"); err != nil {
		return text("", err)
	}
	return text("ok", f.Sync())
}

func read(dev string) string {
	f, err := os.Open("/dev/" + dev)
	if err != nil {
		return text("", err)
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	return text(strings.TrimSpace(line), err)
}
