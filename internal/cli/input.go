package cli

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// input reads a file descriptor that may block for ever, a terminal or a pipe,
// in a way that Close can end; the file itself stays open and as it was.
type input struct {
	f            *os.File
	wakeR, wakeW *os.File
	once         sync.Once
	// hangup, if set, is told that the terminal is gone. Its end is no end of
	// input: Read then waits for Close, so that what hangup does comes first.
	hangup func()
}

func newInput(f *os.File) (*input, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &input{f: f, wakeR: r, wakeW: w}, nil
}

// Read waits for input or for Close; after Close it gives io.EOF.
func (i *input) Read(p []byte) (int, error) {
	fds := []unix.PollFd{
		{Fd: int32(i.f.Fd()), Events: unix.POLLIN},
		{Fd: int32(i.wakeR.Fd()), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return 0, err
		}
		if fds[1].Revents != 0 {
			return 0, io.EOF
		}
		if fds[0].Revents&unix.POLLNVAL != 0 {
			return 0, io.EOF
		}
		n, err := unix.Read(int(i.f.Fd()), p)
		if i.hangup != nil && fds[0].Revents&unix.POLLHUP != 0 && (n == 0 || errors.Is(err, unix.EIO)) {
			i.hangup()
			return 0, i.closed()
		}
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// closed waits for Close and gives io.EOF.
func (i *input) closed() error {
	fds := []unix.PollFd{{Fd: int32(i.wakeR.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == nil:
			return io.EOF
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// Close ends a Read that is under way.
func (i *input) Close() error {
	i.once.Do(func() { _ = i.wakeW.Close() })
	return nil
}
