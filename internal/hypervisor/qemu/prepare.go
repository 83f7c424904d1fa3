package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/launch"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
)

// prepared is all that is made and opened before QEMU runs.
type prepared struct {
	files  files
	h      handles
	log    *os.File
	ref    hypervisor.Ref // all but Process
	groups []uint32
	broker *launch.Broker // or nil
	// endBroker ends it, and says what went wrong with it.
	endBroker func() error
	undo      []func()
}

// abort removes what was made, newest first.
func (p *prepared) abort() {
	p.close()
	p.endBroker() //nolint:errcheck // the start failed anyway
	for i := len(p.undo) - 1; i >= 0; i-- {
		p.undo[i]()
	}
}

// close drops this process's copies of the open files.
func (p *prepared) close() {
	p.files.close()
	if p.log != nil {
		p.log.Close()
		p.log = nil
	}
}

// prepare makes sockets, log and RAM file and opens everything that QEMU is
// given. When it fails nothing but the log is left.
func prepare(ctx context.Context, spec hypervisor.Spec, host *found) (*prepared, error) {
	p := &prepared{endBroker: func() error { return nil }, h: handles{control: -1, agent: -1, console: -1, kernel: -1, initrd: -1, ram: -1}}
	p.ref = hypervisor.Ref{
		Driver: Name, ID: spec.ID, Memory: spec.Memory, CodeBuffer: codeBuffer(spec, host.Accelerator),
		Control:  filepath.Join(spec.SockDir, paths.ControlSock),
		Endpoint: hypervisor.Endpoint{Kind: hypervisor.EndpointSerial, Path: filepath.Join(spec.SockDir, paths.AgentSock)},
		Log:      filepath.Join(spec.Dir, paths.VMMLog),
		Console:  spec.Console.Log,
		RAMBase:  spec.RAM.Path, RAMShared: spec.RAM.Shared,
	}
	for _, step := range []func(context.Context, hypervisor.Spec, *found) error{
		p.openLog, p.listen, p.openConsole, p.openBoot, p.openRAM, p.openDevices, p.openKVM,
	} {
		if err := step(ctx, spec, host); err != nil {
			p.abort()
			return nil, err
		}
	}
	return p, nil
}

func cannot(err error, code, format string, args ...any) error {
	kind := errs.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = errs.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = errs.Denied
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.EDQUOT):
		kind = errs.Exhausted
	}
	return errs.Wrap(err, kind, code, format, args...)
}

// openLog begins a new log: what it says is about this start.
func (p *prepared) openLog(_ context.Context, _ hypervisor.Spec, _ *found) error {
	f, err := os.OpenFile(p.ref.Log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return cannot(err, "vmm_log", "open the hypervisor's log")
	}
	p.log = f
	return nil
}

// listen makes the sockets that QEMU serves. They are this process's, 0600
// in a 0700 directory, whatever user QEMU runs as.
func (p *prepared) listen(_ context.Context, _ hypervisor.Spec, _ *found) error {
	for _, s := range []struct {
		path string
		to   *int
	}{{p.ref.Control, &p.h.control}, {p.ref.Endpoint.Path, &p.h.agent}} {
		f, err := listenUnix(s.path)
		if err != nil {
			return cannot(err, "vmm_socket", "make socket %s", s.path)
		}
		*s.to = p.files.add(f)
		p.undo = append(p.undo, func() { os.Remove(s.path) })
	}
	return nil
}

func listenUnix(path string) (*os.File, error) {
	// Left by an earlier machine of the same VM, which is gone: Start on a
	// running one is refused before.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		os.Remove(path)
		return nil, err
	}
	f, err := l.File()
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	return f, nil
}

func (p *prepared) openConsole(ctx context.Context, spec hypervisor.Spec, _ *found) error {
	switch {
	case spec.Console.Socket != "":
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", spec.Console.Socket)
		if err != nil {
			return cannot(err, "console_socket", "connect the console")
		}
		defer c.Close()
		f, err := c.(*net.UnixConn).File()
		if err != nil {
			return cannot(err, "console_socket", "connect the console")
		}
		p.h.console, p.h.consoleSocket = p.files.add(f), true
	case spec.Console.Log != "":
		f, err := os.OpenFile(spec.Console.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return cannot(err, "console_log", "open the console's log")
		}
		p.h.console = p.files.add(f)
	}
	return nil
}

func (p *prepared) open(what, path string, flags int) (int, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return -1, cannot(err, "machine_file", "open the %s", what)
	}
	return p.files.add(f), nil
}

func (p *prepared) openBoot(ctx context.Context, spec hypervisor.Spec, _ *found) (err error) {
	if spec.Restore != nil {
		return nil // all that was booted is in the RAM file
	}
	if p.h.kernel, err = p.openAgain(ctx, spec, "kernel", spec.Kernel); err != nil {
		return err
	}
	if spec.Initrd != "" {
		p.h.initrd, err = p.openAgain(ctx, spec, "initramfs", spec.Initrd)
	}
	return err
}

// openAgain opens a file that QEMU will open a second time, for reading, by
// the number of its descriptor: one whose mode refuses that is copied for it.
func (p *prepared) openAgain(ctx context.Context, spec hypervisor.Spec, what, path string) (int, error) {
	ok, err := allowed(spec, path, 0o4)
	if err != nil {
		return -1, cannot(err, "machine_file", "open the %s", what)
	}
	if !ok {
		return p.copy(ctx, spec, what, path)
	}
	return p.open(what, path, os.O_RDONLY)
}

// allowed says whether the mode of the file at path gives QEMU's user the
// permission, 0o4 or 0o6.
func allowed(spec hypervisor.Spec, path string, want uint32) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false, err
	}
	user := hypervisor.Credential{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if spec.User != nil {
		user = *spec.User
	}
	return allows(st, user, want), nil
}

// allows says whether the file's mode gives user the permission; without
// capabilities, which QEMU has none of, that goes for root as well.
func allows(st unix.Stat_t, user hypervisor.Credential, want uint32) bool {
	shift := 0
	switch {
	case st.Uid == user.UID:
		shift = 6
	case st.Gid == user.GID:
		shift = 3
	}
	return st.Mode>>shift&want == want
}

func (p *prepared) openRAM(ctx context.Context, spec hypervisor.Spec, host *found) (err error) {
	switch {
	case spec.RAM.Path == "":
		return nil
	case spec.RAM.Shared:
		return p.makeRAM(spec)
	}
	// QEMU before 8.2 opens even a file that it maps privately for writing.
	// A user of the machine's own has no such right to a template, for one
	// QEMU that was taken over could change the RAM of every other clone.
	want := uint32(0o6)
	if host.version.has(privateReadOnly) {
		want = 0o4
	}
	ok, err := allowed(spec, spec.RAM.Path, want)
	if err != nil {
		return cannot(err, "machine_file", "open the RAM file")
	}
	switch {
	case ok:
		p.h.ram, err = p.open("RAM file", spec.RAM.Path, os.O_RDONLY)
		return err
	case spec.User != nil && launch.BrokerUsable():
		return p.brokerRAM(spec)
	}
	p.h.ram, err = p.copy(ctx, spec, "RAM file", spec.RAM.Path)
	return err
}

// brokerRAM opens the RAM file for reading and has QEMU's own opening of it
// answered with that.
func (p *prepared) brokerRAM(spec hypervisor.Spec) (err error) {
	if p.h.ram, err = p.open("RAM file", spec.RAM.Path, os.O_RDONLY); err != nil {
		return err
	}
	f, err := os.Open(spec.RAM.Path) // lives until the start is over
	if err != nil {
		return cannot(err, "machine_file", "open the RAM file")
	}
	if p.broker, err = launch.NewBroker(procFD(p.h.ram), f); err != nil {
		f.Close()
		return cannot(err, "machine_file", "open the RAM file")
	}
	p.h.ramBrokered = true
	p.endBroker = func() error {
		err := p.broker.Stop()
		f.Close()
		return err
	}
	return nil
}

// copy gives the machine a file of its own with the content of path, without
// a name, owned by its user.
func (p *prepared) copy(ctx context.Context, spec hypervisor.Spec, what, path string) (int, error) {
	from, err := os.Open(path)
	if err != nil {
		return -1, cannot(err, "machine_file", "open the %s", what)
	}
	defer from.Close()
	fi, err := from.Stat()
	if err != nil {
		return -1, cannot(err, "machine_file", "open the %s", what)
	}
	fd, err := unix.Open(spec.Dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, cannot(err, "machine_file", "copy the %s", what)
	}
	to := os.NewFile(uintptr(fd), what)
	n := p.files.add(to)
	if err := copySparse(ctx, to, from, fi.Size()); err != nil {
		return -1, cannot(err, "machine_file", "copy the %s", what)
	}
	return n, own(to, spec.User)
}

// makeRAM makes the file that a shared machine's RAM lies in, owned by the
// hypervisor's user.
func (p *prepared) makeRAM(spec hypervisor.Spec) error {
	f, err := os.OpenFile(spec.RAM.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return cannot(err, "ram_file", "make the RAM file")
	}
	p.undo = append(p.undo, func() { os.Remove(spec.RAM.Path) })
	p.h.ram = p.files.add(f)
	if err := f.Truncate(spec.Memory); err != nil {
		return cannot(err, "ram_file", "make the RAM file")
	}
	return own(f, spec.User)
}

func own(f *os.File, user *hypervisor.Credential) error {
	if user == nil {
		return nil
	}
	if err := f.Chown(int(user.UID), int(user.GID)); err != nil {
		return cannot(err, "ram_file", "give the RAM file to user %d", user.UID)
	}
	return nil
}

func (p *prepared) openDevices(_ context.Context, spec hypervisor.Spec, _ *found) error {
	for _, d := range spec.Disks {
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		fd, err := p.open("disk "+d.ID, d.Path, flags)
		if err != nil {
			return err
		}
		p.h.disks = append(p.h.disks, fd)
	}
	for _, n := range spec.Nets {
		// A duplicate, for these files are closed after the start and the
		// caller's is the caller's.
		fd, err := unix.FcntlInt(n.File.Fd(), unix.F_DUPFD_CLOEXEC, firstFile)
		if err != nil {
			return cannot(err, "machine_net", "pass on network %s", n.ID)
		}
		p.h.nets = append(p.h.nets, p.files.add(os.NewFile(uintptr(fd), "net "+n.ID)))
	}
	return nil
}

// openKVM finds the group that may open KVM, for a user of the machine's own.
func (p *prepared) openKVM(_ context.Context, spec hypervisor.Spec, host *found) error {
	if spec.User == nil || host.Accelerator != hypervisor.KVM {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/kvm", &st); err != nil {
		return cannot(err, "kvm_device", "look at /dev/kvm")
	}
	if st.Mode&0o006 != 0o006 {
		p.groups = []uint32{st.Gid}
	}
	return nil
}

// openFiles is a bound of the descriptors that a QEMU needs for itself.
const openFiles = 1024

// command is what is started for spec.
func (p *prepared) command(spec hypervisor.Spec, host *found, launcher []string) (proc.Cmd, error) {
	ls := launch.Spec{
		Path: host.Binary, Args: append([]string{marker(spec)}, arguments(spec, host, p.h)...),
		Env: []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, Readable: true,
		Rlimits: []proc.Rlimit{{Resource: unix.RLIMIT_CORE, Value: 0}, {Resource: unix.RLIMIT_NOFILE, Value: openFiles}},
	}
	if spec.MaxOpenFiles > 0 {
		ls.Rlimits[1].Value = spec.MaxOpenFiles
	}
	if u := spec.User; u != nil {
		ls.Credential = &proc.Credential{UID: u.UID, GID: u.GID, Groups: p.groups}
	}
	if p.broker != nil {
		ls.Broker = p.files.add(p.broker.Theirs())
	}
	cmd, err := launch.Command(launcher, marker(spec), ls, p.files.list)
	if err != nil {
		return proc.Cmd{}, fmt.Errorf("start QEMU: %w", err)
	}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	return cmd, nil
}
