package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/inroot"
	"github.com/banger-dev/banger/internal/guest/wire"
)

const cgroupRoot = "/sys/fs/cgroup/"

// supervise starts the agent and stays with it: reaping, waiting for its word
// to hand over, or to stop.
func (c *chain) supervise(ctx context.Context) error {
	initPath := c.findInit()
	pid, conn, err := c.startAgent(initPath)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	p := &pid1{agent: pid, conn: conn, init: initPath, modules: c.modulesAt}
	return p.run(ctx)
}

// inits are where an image's own init is looked for, in order.
var inits = []string{"/sbin/init", "/etc/init", "/bin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"}

// findInit gives the image's own init, or "".
func (c *chain) findInit() string {
	root, err := inroot.Open("/")
	if err != nil {
		return ""
	}
	defer root.Close()
	switch c.opts.init {
	case "":
		return lookInit(root)
	case "none":
		return ""
	}
	return c.opts.init // the user's word; a wrong one fails when it is tried
}

func lookInit(root *inroot.Root) string {
	for _, p := range inits {
		info, err := root.Stat(p)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		if isBareBusybox(root, p) {
			continue
		}
		return p
	}
	return ""
}

// isBareBusybox finds the init of container images built on busybox: it is
// there only because every applet is, and without anything to start it would
// do nothing but respawn logins on terminals that do not exist.
func isBareBusybox(root *inroot.Root, init string) bool {
	a, err := root.Stat(init)
	if err != nil {
		return false
	}
	b, err := root.Stat("/bin/busybox")
	if err != nil || !os.SameFile(a, b) {
		return false
	}
	for _, p := range []string{"/sbin/openrc", "/etc/init.d/rcS"} {
		if _, err := root.Stat(p); err == nil {
			return false
		}
	}
	return true
}

// startAgent starts the agent in a control group of its own, which systemd
// leaves alone, and gives it what it has to know.
func (c *chain) startAgent(initPath string) (int, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, err
	}
	mine, its := os.NewFile(uintptr(pair[0]), "agent"), os.NewFile(uintptr(pair[1]), "agent")
	defer its.Close()
	devNull, err := os.Open("/dev/null")
	if err != nil {
		return 0, nil, err
	}
	defer devNull.Close()
	files := []uintptr{devNull.Fd(), 1, 2, its.Fd()}
	if c.system != nil {
		files = append(files, c.system.Fd())
		defer c.system.Close()
	}
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if group, err := agentGroup(); err != nil {
		c.warn("the agent's control group: %v", err)
	} else {
		defer group.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(group.Fd())
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{agentArg0}, attr)
	if err != nil {
		return 0, nil, err
	}
	handoff, err := json.Marshal(Handoff{
		Token: c.seed.Token, Init: initPath, Disks: c.found,
		Steps: c.steps, Warnings: c.warnings, System: c.system != nil,
	})
	if err == nil {
		_, err = mine.Write(append(handoff, '\n'))
	}
	return pid, mine, err
}

func agentGroup() (*os.File, error) {
	dir := path.Join(cgroupRoot, wire.AgentCgroup)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return os.Open(dir)
}

// pid1 is PID 1 after the boot.
type pid1 struct {
	agent   int
	conn    *os.File
	init    string
	modules string // where the kernel's modules are mounted, or ""
}

// run reaps and obeys until the machine stops or another program takes over.
// Its goroutines end with the process: PID 1 either becomes another program
// or stops the machine.
func (p *pid1) run(ctx context.Context) error {
	commands := make(chan byte)
	go p.listen(commands)
	gone := make(chan error, 1)
	go p.reap(gone)
	// The ways busybox, sysvinit and systemd tools ask PID 1 to stop.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR, sigPowerOff, sigReboot)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-gone:
			return err
		case s := <-signals:
			reboot := s == unix.SIGTERM || s == unix.SIGINT || s == sigReboot
			stopMachine(reboot, p.agent)
		case cmd := <-commands:
			switch cmd {
			case cmdHandover:
				err := p.become()
				_, _ = fmt.Fprintf(p.conn, "%v\n", err)
			case cmdPowerOff, cmdReboot:
				stopMachine(cmd == cmdReboot, p.agent)
			}
		}
	}
}

// systemd's real-time signals for an orderly stop (systemd(1), "SIGNALS").
const (
	sigPowerOff = syscall.Signal(34 + 4)
	sigReboot   = syscall.Signal(34 + 5)
)

func (p *pid1) listen(commands chan<- byte) {
	buf := make([]byte, 1)
	for {
		if n, err := p.conn.Read(buf); err != nil || n == 0 {
			return // the agent is gone, which reap tells
		}
		commands <- buf[0]
	}
}

// reap collects every process that ends; the agent's end is the guest's.
func (p *pid1) reap(gone chan<- error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			gone <- fmt.Errorf("wait for processes: %w", err)
			return
		case pid == p.agent:
			gone <- fmt.Errorf("the agent ended: exit status %d, signal %d", status.ExitStatus(), status.Signal())
			return
		}
	}
}

// become runs the image's init in this process. It returns only when that
// failed. What signals were caught for goes with the program.
func (p *pid1) become() error {
	if p.init == "" {
		return errors.New("the image has no init")
	}
	if err := tellSystemd("/", p.init, p.modules); err != nil {
		logf("warning: %v", err)
	}
	argv := append([]string{p.init}, os.Args[1:]...)
	return fmt.Errorf("exec %s: %w", p.init, syscall.Exec(p.init, argv, os.Environ()))
}

// tellSystemd writes what systemd, where it is the init, must know of a machine
// that was in use before it came: it must not empty /tmp at boot, where files of
// commands lie already, nor unmount the kernel's modules while udev still reads
// them, which fails and alarms whoever sees the console. (They are unmounted
// later, with everything else.)
func tellSystemd(root, init, modules string) error {
	if !IsSystemd(filepath.Join(root, init)) {
		return nil
	}
	const mark = "# Written by banger at every start.\n"
	run := filepath.Join(root, "run")
	files := map[string]string{
		// in place of the file of this name in /usr/lib (tmpfiles.d(5)): q
		// makes the directory where D also empties it
		filepath.Join(run, "tmpfiles.d/tmp.conf"): mark + "q /tmp 1777 root root -\n",
	}
	if modules != "" {
		files[filepath.Join(run, "systemd/system", unitName(modules)+".mount.d/banger.conf")] = mark + "[Unit]\nDefaultDependencies=no\n"
	}
	var all []error
	for path, text := range files {
		all = append(all, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
	}
	return errors.Join(all...)
}

// IsSystemd says whether an init is systemd, whatever it is called.
func IsSystemd(init string) bool {
	program, err := filepath.EvalSymlinks(init)
	return err == nil && filepath.Base(program) == "systemd"
}

// unitName writes a path as systemd does in names of units (systemd.unit(5),
// "String escaping").
func unitName(path string) string {
	var b strings.Builder
	for i, c := range []byte(strings.Trim(path, "/")) {
		switch {
		case c == '/':
			b.WriteByte('-')
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == ':', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}
