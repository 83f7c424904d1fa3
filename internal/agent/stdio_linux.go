package agent

import (
	"fmt"
	"os"
	"strings"

	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

// stdio are both ends of a command's standard files.
type stdio struct {
	stdin  *os.File
	output [2]*os.File
	child  []*os.File // stdin, stdout, stderr
	tty    *os.File   // the child's terminal, or nil
}

func openStdio(req *wire.ExecRequest) (*stdio, error) {
	s := &stdio{}
	var err error
	if req.TTY {
		err = s.openTerminal(wire.Size{Rows: req.Rows, Cols: req.Cols})
	} else {
		err = s.openPipes(req.Stdin)
	}
	if err != nil {
		s.closeChild()
		s.closeParent()
		return nil, err
	}
	return s, nil
}

func (s *stdio) openPipes(stdin bool) error {
	s.child = make([]*os.File, 3)
	if stdin {
		r, w, err := pipe(true)
		if err != nil {
			return err
		}
		s.child[0], s.stdin = r, w
	} else {
		null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		s.child[0] = null
	}
	for i := range s.output {
		r, w, err := pipe(false)
		if err != nil {
			return err
		}
		s.output[i], s.child[i+1] = r, w
	}
	return nil
}

// pipe makes a pipe of which only our end does not block: commands do not
// expect EAGAIN.
func pipe(ourWriteEnd bool) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	ours := fds[0]
	if ourWriteEnd {
		ours = fds[1]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// openTerminal makes a pseudo-terminal. The child's end is asked of the
// kernel itself, so that nothing mounted on /dev/pts can stand in its way.
func (s *stdio) openTerminal(size wire.Size) error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a terminal: open /dev/ptmx: %w", err)
	}
	ours := os.NewFile(uintptr(fd), "/dev/ptmx")
	s.stdin, s.output[0] = ours, ours
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("make a terminal: unlock: %w", err)
	}
	tfd, err := openPeer(fd)
	if err != nil {
		return fmt.Errorf("make a terminal: %w", err)
	}
	s.tty = os.NewFile(uintptr(tfd), "tty")
	s.child = []*os.File{s.tty, s.tty, s.tty}
	if size.Rows == 0 || size.Cols == 0 {
		size = wire.Size{Rows: 24, Cols: 80}
	}
	err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{
		Row: uint16(min(size.Rows, 0xffff)), Col: uint16(min(size.Cols, 0xffff)),
	})
	if err != nil {
		return fmt.Errorf("make a terminal: set its size: %w", err)
	}
	return nil
}

func openPeer(fd int) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

func (s *stdio) files() []uintptr {
	out := make([]uintptr, len(s.child))
	for i, f := range s.child {
		out[i] = f.Fd()
	}
	return out
}

func (s *stdio) closeChild() {
	for _, f := range s.child {
		if f != nil {
			f.Close()
		}
	}
	s.child = nil
}

func (s *stdio) closeParent() {
	for _, f := range []*os.File{s.stdin, s.output[0], s.output[1]} {
		if f != nil {
			f.Close()
		}
	}
}

// signalName is a signal's name as wire.Exit has it: "KILL".
func signalName(sig unix.Signal) string {
	return strings.TrimPrefix(unix.SignalName(sig), "SIG")
}
