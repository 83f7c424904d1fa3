package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// errBrokerDone says that the program ended.
var errBrokerDone = errors.New("the program has ended")

// Broker gives a launched program one file as this process opened it, where
// the program insists on opening it for writing too: QEMU before 8.2 does so
// with the file that its RAM maps privately. The kernel stops the program's
// call (seccomp) and the broker answers it. While a broker serves, the
// program's other opens for writing go on as ever; afterwards they fail with
// ENOSYS, so it is for programs that are given all their files open.
type Broker struct {
	path   string
	file   *os.File
	ours   *os.File
	theirs *os.File
	done   chan struct{}
	stop   context.CancelFunc
	once   sync.Once
	err    error
}

// NewBroker makes a broker for the program's open of path, byte for byte,
// which gets file. Theirs goes to the program as the descriptor that
// Spec.Broker names; Serve begins, Stop ends it. The file stays the caller's.
func NewBroker(path string, file *os.File) (*Broker, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make broker: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, fmt.Errorf("make broker: %w", err)
	}
	return &Broker{
		path: path, file: file, done: make(chan struct{}),
		ours: os.NewFile(uintptr(fds[0]), "broker"), theirs: os.NewFile(uintptr(fds[1]), "broker, program's end"),
	}, nil
}

// Theirs is the program's end.
func (b *Broker) Theirs() *os.File { return b.theirs }

// Serve answers in a goroutine of its own until Stop, or the program's end.
// The program's end of the socket must have been closed here before, so that
// a program that never ran ends it.
func (b *Broker) Serve(ctx context.Context) {
	ctx, b.stop = context.WithCancel(ctx)
	go func() {
		defer close(b.done)
		b.err = b.serve(ctx)
	}()
}

// Stop ends it and says what went wrong, if anything did.
func (b *Broker) Stop() error {
	b.once.Do(func() {
		if b.stop != nil {
			b.stop()
			<-b.done
		}
		b.ours.Close()
		b.theirs.Close()
	})
	return b.err
}
