// Package qmp speaks QEMU's machine protocol over a Unix socket: greeting,
// capabilities, commands with ids, answers and events. It knows no command's
// meaning. QEMU is trusted only half: it may have been taken over by its guest,
// so lines are bounded, nonsense ends the connection, and no wait is without
// its caller's limit.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed says that the connection has ended, from either side.
var ErrClosed = errors.New("the control connection is closed")

// Conn is a connection to one QEMU. Its methods may be called concurrently;
// QEMU runs one command after the other. Its reader ends with the connection.
type Conn struct {
	sock    *net.UnixConn
	version string
	onEvent func(Event)
	writing chan struct{} // holds a token while a command is written
	done    chan struct{}

	mu      sync.Mutex
	err     error // why it ended
	nextID  uint64
	waiting map[uint64]chan answer
}

// Dial connects, takes the greeting and asks for the command mode. QEMU serves
// one connection at a time: while another has it, the greeting does not come
// and ctx decides. onEvent is called for every event, in order, by the reader,
// and must not block; nil drops them.
func Dial(ctx context.Context, path string, onEvent func(Event)) (*Conn, error) {
	nc, err := connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU: %w", err)
	}
	sock, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("connect to QEMU: unexpected %T", nc)
	}
	if onEvent == nil {
		onEvent = func(Event) {}
	}
	c := &Conn{
		sock: sock, onEvent: onEvent, writing: make(chan struct{}, 1),
		done: make(chan struct{}), nextID: 1, waiting: map[uint64]chan answer{},
	}
	r := bufio.NewReaderSize(sock, maxLine)
	stop := context.AfterFunc(ctx, func() { sock.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the read fails otherwise
	err = c.greet(r)
	if !stop() && err == nil { // ctx ended and its deadline may hit later reads
		err = context.Cause(ctx)
	}
	if err != nil {
		sock.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("greet QEMU: %w", err)
	}
	go c.read(r)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, fmt.Errorf("greet QEMU: %w", err)
	}
	return c, nil
}

// connect dials. QEMU's queue holds two connections, and while it serves one
// even those that were given up stay in it: EAGAIN says that it is full.
func connect(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := d.DialContext(ctx, "unix", path)
		if !errors.Is(err, unix.EAGAIN) {
			return c, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *Conn) greet(r *bufio.Reader) error {
	line, err := readLine(r)
	if err != nil {
		return err
	}
	m, err := decode(line)
	if err != nil {
		return err
	}
	if m.greeting == nil {
		return errors.New("the first line is no greeting")
	}
	c.version = m.greeting.Version
	return nil
}

// Version is QEMU's version as its greeting told it.
func (c *Conn) Version() string { return c.version }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection; commands under way fail with ErrClosed.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// fail ends the connection for a reason; the first one counts.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.sock.Close()
}

// read is the connection's one reader.
func (c *Conn) read(r *bufio.Reader) {
	err := c.readAll(r)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		err = ErrClosed
	}
	c.fail(err)
	close(c.done)
}

func (c *Conn) readAll(r *bufio.Reader) error {
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		m, err := decode(line)
		if err != nil {
			return err
		}
		switch {
		case m.event != nil:
			c.onEvent(*m.event)
		case m.answer != nil:
			c.mu.Lock()
			ch := c.waiting[m.answer.id]
			delete(c.waiting, m.answer.id)
			c.mu.Unlock()
			if ch != nil { // nil: its caller gave up
				ch <- *m.answer // buffered for its one answer
			}
		}
	}
}

// Execute runs a command and decodes what it returns into result (nil drops
// it). A failure that QEMU reports is an *Error. When ctx ends first, the
// command may still be carried out.
func (c *Conn) Execute(ctx context.Context, command string, args, result any) error {
	return c.ExecuteFile(ctx, command, args, nil, result)
}

// ExecuteFile is Execute with an open file passed along, for the commands that
// take one. The caller closes its own.
func (c *Conn) ExecuteFile(ctx context.Context, command string, args any, file *os.File, result any) error {
	a, err := c.roundTrip(ctx, command, args, file)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if a.err != nil {
		return fmt.Errorf("%s: %w", command, a.err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.result, result); err != nil {
		return fmt.Errorf("%s: unexpected answer: %w", command, err)
	}
	return nil
}

func (c *Conn) roundTrip(ctx context.Context, command string, args any, file *os.File) (answer, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return answer{}, err
	}
	id := c.nextID
	c.nextID++
	c.waiting[id] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()

	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return answer{}, err
	}
	if err := c.write(ctx, append(line, '\n'), file); err != nil {
		return answer{}, err
	}
	select {
	case a := <-ch:
		return a, nil
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	case <-c.done:
	}
	select { // the answer may have come with the end
	case a := <-ch:
		return a, nil
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return answer{}, c.err
}

// write sends one line whole or ends the connection.
func (c *Conn) write(ctx context.Context, line []byte, file *os.File) error {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.done:
		return ErrClosed
	}
	if err := c.sock.SetWriteDeadline(time.Time{}); err != nil {
		return ErrClosed
	}
	stop := context.AfterFunc(ctx, func() { c.sock.SetWriteDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the write fails otherwise
	defer stop()
	var err error
	if file == nil {
		_, err = c.sock.Write(line)
	} else {
		err = c.writeFile(line, file)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	c.fail(fmt.Errorf("%w: %w", ErrClosed, err)) // half a line may be out
	return err
}

func (c *Conn) writeFile(line []byte, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var werr error
	if err := raw.Control(func(fd uintptr) {
		n, _, werr = c.sock.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	if werr == nil && n < len(line) {
		_, werr = c.sock.Write(line[n:])
	}
	return werr
}
