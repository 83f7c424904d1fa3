package shim

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// console drains what the guest writes into a log, as fast as it comes: a
// guest must never wait for its own log, nor fill the disk with it.
type console struct {
	ln  net.Listener
	log io.Writer

	mu   sync.Mutex
	conn net.Conn

	seen, lost atomic.Uint64
	// first is closed when somebody connected, idle holds a token while
	// nobody is connected any more.
	first chan struct{}
	once  sync.Once
	gone  chan struct{}
}

func newConsole(ln net.Listener, log io.Writer) *console {
	return &console{ln: ln, log: log, first: make(chan struct{}), gone: make(chan struct{}, 1)}
}

// serve takes connections, one after the other, until ctx ends.
func (c *console) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		_ = c.ln.Close() // wakes Accept
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.conn != nil {
			_ = c.conn.Close() // wakes Read
		}
	})
	defer stop()
	for {
		conn, err := c.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		if !c.take(ctx, conn) {
			return nil
		}
		c.drain(conn)
		c.mu.Lock()
		c.conn = nil
		c.mu.Unlock()
		select {
		case c.gone <- struct{}{}:
		default:
		}
	}
}

func (c *console) take(ctx context.Context, conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		_ = conn.Close() // nothing was read
		return false
	}
	c.conn = conn
	c.once.Do(func() { close(c.first) })
	select {
	case <-c.gone:
	default:
	}
	return true
}

func (c *console) drain(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			c.seen.Add(uint64(n))
			w, werr := c.log.Write(buf[:n])
			if werr != nil {
				c.lost.Add(uint64(n - w))
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *console) report() ConsoleReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ConsoleReport{Connected: c.conn != nil, Bytes: c.seen.Load(), Lost: c.lost.Load()}
}
