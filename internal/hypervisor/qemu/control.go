package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/qemu/qmp"
)

// control keeps one connection to a QEMU, and makes a new one when it broke:
// QEMU serves one at a time and keeps listening.
type control struct {
	path  string
	ended <-chan struct{} // QEMU's end
	event func(qmp.Event)
	dial  chan struct{} // holds a token while a connection is made

	mu     sync.Mutex
	conn   *qmp.Conn
	closed bool
}

func newControl(path string, ended <-chan struct{}, event func(qmp.Event)) *control {
	return &control{path: path, ended: ended, event: event, dial: make(chan struct{}, 1)}
}

var errHandleClosed = errors.New("this handle on the machine is closed")

// get gives the connection, made anew if need be; hypervisor.ErrGone when QEMU
// has ended.
func (c *control) get(ctx context.Context) (*qmp.Conn, error) {
	select {
	case c.dial <- struct{}{}:
		defer func() { <-c.dial }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if conn, err := c.current(); conn != nil || err != nil {
		return conn, err
	}
	// A QEMU that ends while it is waited for ends the waiting.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-c.ended:
			cancel(hypervisor.ErrGone)
		case <-ctx.Done():
		}
	}()
	conn, err := qmp.Dial(ctx, c.path, c.event)
	cancel(nil)
	<-watching
	if errors.Is(err, unix.ECONNREFUSED) {
		err = fmt.Errorf("%w: %w", hypervisor.ErrGone, err)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close() // only waits for the reader, which never takes mu
		return nil, errHandleClosed
	}
	c.conn = conn
	return conn, nil
}

// current gives the connection if it still stands.
func (c *control) current() (*qmp.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errHandleClosed
	}
	select {
	case <-c.ended:
		return nil, hypervisor.ErrGone
	default:
	}
	if c.conn == nil {
		return nil, nil
	}
	select {
	case <-c.conn.Done():
		return nil, nil
	default:
		return c.conn, nil
	}
}

// drain waits until everything that an ended QEMU said has been read.
func (c *control) drain() {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		<-conn.Done()
	}
}

func (c *control) close() {
	c.mu.Lock()
	c.closed = true
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}
