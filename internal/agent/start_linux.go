package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

// process is a command that was just started, and our ends of its pipes.
type process struct {
	pid    int
	pidfd  *os.File // nil where the kernel gave none
	stdin  *os.File
	output [2]*os.File
}

// Exit codes of a command that never ran, as shells have them.
const (
	codeCannotRun = 126
	codeNotFound  = 127
)

func cannotRun(format string, args ...any) *wire.Exit {
	return &wire.Exit{Code: codeCannotRun, Failure: "cannot_run", Message: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *wire.Exit {
	return &wire.Exit{Code: codeNotFound, Failure: "not_found", Message: fmt.Sprintf(format, args...)}
}

// start starts the command of a request, or says why it never ran.
func (x *execs) start(ctx context.Context, req *wire.ExecRequest) (*process, *wire.Exit) {
	who, err := lookupUser(req.User)
	if err != nil {
		return nil, cannotRun("%v", err)
	}
	cwd, failure := chooseCwd(req.Cwd, who.home)
	if failure != nil {
		return nil, failure
	}
	env := x.environment(ctx, req, who, cwd)
	path, argv, failure := findCommand(req, who, cwd, env.get("PATH"))
	if failure != nil {
		return nil, failure
	}
	io, err := openStdio(req)
	if err != nil {
		return nil, cannotRun("%v", err)
	}
	defer io.closeChild()
	if io.tty != nil && who.credential != nil {
		_ = io.tty.Chown(int(who.credential.Uid), -1) // it is open already
	}
	p, err := x.fork(path, argv, &syscall.ProcAttr{Dir: cwd, Env: env.list(), Files: io.files()}, who, req.TTY)
	if errors.Is(err, syscall.ENOEXEC) && isText(path) {
		// A script without a first line saying what it is for: as execvp does.
		p, err = x.fork("/bin/sh", append([]string{"sh", path}, argv[1:]...),
			&syscall.ProcAttr{Dir: cwd, Env: env.list(), Files: io.files()}, who, req.TTY)
	}
	if err != nil {
		io.closeParent()
		return nil, cannotRun("%s: %v", argv[0], err)
	}
	p.stdin, p.output = io.stdin, io.output
	return p, nil
}

// chooseCwd is the rule of ExecRequest.Cwd.
func chooseCwd(asked, home string) (string, *wire.Exit) {
	if asked != "" {
		if !filepath.IsAbs(asked) {
			asked = filepath.Join(home, asked)
		}
		if !isDir(asked) {
			return "", cannotRun("no directory %s", asked)
		}
		return asked, nil
	}
	for _, dir := range []string{workspace(), home} {
		if dir != "" && isDir(dir) {
			return dir, nil
		}
	}
	return "/", nil
}

// WorkspaceFile holds the path of the prepared workspace, where there is one.
const WorkspaceFile = "/run/banger/workspace"

func workspace() string {
	b, err := os.ReadFile(WorkspaceFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// findCommand gives the program of a request and its arguments.
func findCommand(req *wire.ExecRequest, who *user, cwd, path string) (string, []string, *wire.Exit) {
	if req.Shell {
		for _, sh := range []string{who.shell, "/bin/bash", "/bin/sh"} {
			if sh != "" && executable(sh) == nil {
				return sh, []string{"-" + filepath.Base(sh)}, nil // a login shell
			}
		}
		return "", nil, notFound("there is no shell in this guest")
	}
	if len(req.Argv) == 0 || req.Argv[0] == "" {
		return "", nil, notFound("no command given")
	}
	found, failure := resolve(req.Argv[0], cwd, path)
	return found, req.Argv, failure
}

// resolve finds a command: with a slash in cwd, otherwise along path.
func resolve(name, cwd, path string) (string, *wire.Exit) {
	if strings.Contains(name, "/") {
		full := name
		if !filepath.IsAbs(name) {
			full = filepath.Join(cwd, name)
		}
		switch err := executable(full); {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			return "", notFound("%s: no such file", name)
		case err != nil:
			return "", cannotRun("%s: %v", name, err)
		}
		return full, nil
	}
	var blocked error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		full := filepath.Join(dir, name)
		if !filepath.IsAbs(full) {
			full = filepath.Join(cwd, full)
		}
		switch err := executable(full); {
		case err == nil:
			return full, nil
		case errors.Is(err, fs.ErrPermission):
			blocked = err
		}
	}
	if blocked != nil {
		return "", cannotRun("%s: %v", name, blocked)
	}
	return "", notFound("%s: command not found", name)
}

// isText says whether a file looks like a script rather than a program for
// another machine.
func isText(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 128)
	n, err := f.Read(head)
	return err == nil && !bytes.Contains(head[:n], []byte{0})
}

// executable says why a path cannot be run, as far as its inode tells.
func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return syscall.EISDIR
	case st.Mode&0o111 == 0:
		return fs.ErrPermission
	}
	return nil
}

// fork starts the process in a session of its own and in the commands' control
// group. A group that is gone or closed to us is made anew, or done without:
// the command is worth more than its place.
func (x *execs) fork(path string, argv []string, attr *syscall.ProcAttr, who *user, tty bool) (*process, error) {
	group := x.commandCgroup(false)
	p, err := forkInto(group, path, argv, attr, who, tty)
	if err == nil || group == nil || !groupTrouble(err) || executable(path) != nil {
		return p, err
	}
	if group = x.commandCgroup(true); group != nil {
		if p, err = forkInto(group, path, argv, attr, who, tty); err == nil {
			return p, nil
		}
	}
	return forkInto(nil, path, argv, attr, who, tty)
}

func groupTrouble(err error) bool {
	for _, e := range []error{syscall.ENODEV, syscall.ENOENT, syscall.EBUSY, syscall.EOPNOTSUPP, syscall.EACCES, syscall.EINVAL, syscall.EBADF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func forkInto(group *os.File, path string, argv []string, attr *syscall.ProcAttr, who *user, tty bool) (*process, error) {
	pidfd := -1
	sys := &syscall.SysProcAttr{Setsid: true, Setctty: tty, Credential: who.credential, PidFD: &pidfd}
	if group != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(group.Fd())
	}
	attr.Sys = sys
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid}
	spareNobody(pid)
	if pidfd >= 0 {
		// Where it cannot be polled, waiting takes a thread.
		_ = unix.SetNonblock(pidfd, true)
		p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	return p, nil
}

// spareNobody takes from a command what it inherited of the agent's shelter:
// when memory runs out the agent goes last, what it started does not.
func spareNobody(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
}

// wait waits for the process without keeping a thread, where it can, and reaps it.
func (p *process) wait() syscall.WaitStatus {
	if p.pidfd != nil {
		defer p.pidfd.Close()
		if raw, err := p.pidfd.SyscallConn(); err == nil {
			_ = raw.Read(func(fd uintptr) bool { return exited(int(fd)) })
		}
	}
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.pid, &ws, 0, nil)
		if err != syscall.EINTR {
			return ws
		}
	}
}

// exited says whether a pidfd's process has ended; it reaps nothing.
func exited(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}
