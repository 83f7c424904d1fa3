package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"syscall"
	"time"
)

// Kinds of endpoints.
const (
	Serial = "serial" // a hypervisor's Unix socket in front of a virtio-serial port
	Vsock  = "vsock"  // Firecracker's Unix socket with its CONNECT line
	Unix   = "unix"   // a plain Unix socket
)

// Limits of connecting.
const (
	maxGreeting = 32 // bytes of Firecracker's "OK n" line
	greetingFor = 5 * time.Second
	firstPause  = 4 * time.Millisecond
	longPause   = 250 * time.Millisecond
	firstSync   = 5 * time.Second
	longSync    = time.Minute
)

// ErrGreeting says that the hypervisor's socket answered CONNECT with
// something that is no "OK n" line.
var ErrGreeting = errors.New("bad answer to CONNECT")

// Dial connects to an endpoint and synchronises with the guest behind it. A
// guest that is not there yet is waited for until ctx ends.
func Dial(ctx context.Context, kind, path string, port uint32, stall time.Duration) (*Conn, error) {
	if kind != Serial && kind != Vsock && kind != Unix {
		return nil, fmt.Errorf("unknown kind of endpoint %q", kind)
	}
	pause, patience := firstPause, firstSync
	for {
		conn, err := dialOnce(ctx, kind, path, port, stall, patience)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil || !notYet(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
		pause = min(2*pause, longPause)
		if isTimeout(err) || errors.Is(err, context.DeadlineExceeded) {
			patience = min(2*patience, longSync)
		}
	}
}

func dialOnce(ctx context.Context, kind, path string, port uint32, stall, patience time.Duration) (*Conn, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if kind == Vsock {
		if err := greet(ctx, c, port); err != nil {
			c.Close()
			return nil, err
		}
	}
	return Host(ctx, c, kind == Serial, stall)
}

// greet asks Firecracker for the guest's port. The request goes out in one
// write: Firecracker takes a line that comes in pieces for a bad one.
func greet(ctx context.Context, c net.Conn, port uint32) error {
	limit := time.Now().Add(greetingFor)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	if err := c.SetDeadline(limit); err != nil {
		return err
	}
	line := strconv.AppendUint([]byte("CONNECT "), uint64(port), 10)
	if _, err := c.Write(append(line, '\n')); err != nil {
		return err
	}
	answer, err := readGreeting(c)
	if err != nil {
		return err
	}
	if err := checkGreeting(answer); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// readGreeting reads one line byte by byte: what follows it is the guest's.
func readGreeting(r io.Reader) ([]byte, error) {
	var line [maxGreeting]byte
	for n := range line {
		if _, err := io.ReadFull(r, line[n:n+1]); err != nil {
			return nil, err
		}
		if line[n] == '\n' {
			return line[:n], nil
		}
	}
	return nil, fmt.Errorf("%w: no line within %d bytes", ErrGreeting, maxGreeting)
}

func checkGreeting(line []byte) error {
	number, ok := bytes.CutPrefix(line, []byte("OK "))
	if !ok {
		return fmt.Errorf("%w: %q", ErrGreeting, line)
	}
	if _, err := strconv.ParseUint(string(number), 10, 32); err != nil {
		return fmt.Errorf("%w: %q", ErrGreeting, line)
	}
	return nil
}

// notYet says whether a failure may pass once the guest is further on.
func notYet(err error) bool {
	for _, e := range []error{
		fs.ErrNotExist, io.EOF, io.ErrUnexpectedEOF,
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return !errors.Is(err, ErrGreeting) && isTimeout(err)
}
