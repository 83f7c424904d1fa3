package userspace

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Buffers are taken only while bytes are moved, never while a flow waits:
// thousands of idle connections then cost no buffer.
var pool = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// fromGuest waits for bytes (or one datagram) from the guest and hands them to
// use. io.EOF when the guest will send no more.
func fromGuest(ctx context.Context, ep tcpip.Endpoint, ready <-chan struct{}, use func([]byte) error) error {
	for {
		bp := pool.Get().(*[]byte)
		w := tcpip.SliceWriter(*bp)
		res, err := ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			ep.ModerateRecvBuf(res.Count)
			uerr := use((*bp)[:res.Count])
			pool.Put(bp)
			return uerr
		case *tcpip.ErrWouldBlock:
			pool.Put(bp)
		case *tcpip.ErrClosedForReceive:
			pool.Put(bp)
			return io.EOF
		default:
			pool.Put(bp)
			return tcpipError(err)
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readable registers for news of what the guest sent.
func readable(wq *waiter.Queue) (<-chan struct{}, func()) {
	entry, ch := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	return ch, func() { wq.EventUnregister(&entry) }
}

// fromHost waits for bytes (or one datagram) from a connection of the host's
// and hands them to use. io.EOF at the end of a stream.
func fromHost(conn net.Conn, stream bool, use func([]byte) error) error {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return errors.New("connection without a descriptor")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var (
		bp   *[]byte
		n    int
		rerr error
	)
	err = raw.Read(func(fd uintptr) bool {
		bp = pool.Get().(*[]byte)
		for {
			n, rerr = unix.Read(int(fd), *bp)
			if rerr != unix.EINTR {
				break
			}
		}
		if rerr == unix.EAGAIN {
			pool.Put(bp)
			bp = nil
			return false
		}
		return true
	})
	if bp != nil {
		defer pool.Put(bp)
	}
	switch {
	case err != nil:
		return err
	case rerr != nil:
		return rerr
	case n == 0 && stream:
		return io.EOF
	}
	return use((*bp)[:n])
}
