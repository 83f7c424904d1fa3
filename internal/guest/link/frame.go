// Package link carries frames between the daemon and one guest's agent over a
// byte pipe that either side can lose at any byte: a virtio-serial port, a
// vsock connection or a plain Unix socket. It connects, synchronises both ends
// and detects every cut or lost byte; streams are the business of guest/mux.
//
// Synchronisation: on every connection the host sends SYNC with a nonce (on a
// serial port after as many zeros as the longest frame has bytes) and drops
// what it reads until SYNC-ACK with that nonce. Every frame ends in a trailer
// made of the nonce and the frame's number. A guest that was in the middle of
// a frame of an earlier host sees zeros where the trailer should be, drops the
// frame and hunts for SYNC; so no frame is ever delivered cut or joined.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"time"
)

// Sizes of a frame in bytes.
const (
	HeaderSize  = 12
	TrailerSize = 8
	MaxPayload  = 32 << 10
	maxFrame    = HeaderSize + MaxPayload + TrailerSize
	bufferSize  = 2 * maxFrame
	idleSize    = 4 << 10 // of a buffer that never held more
)

// frameMagic opens every frame. Neither byte is zero, so the zeros before a
// SYNC are never taken for a header.
const frameMagic = 0xB7C3

// Errors that end an epoch of a link.
var (
	// ErrDesync says that the peer's bytes are not this epoch's frames: it
	// was cut off, bytes were lost, or it does not keep to the protocol.
	ErrDesync = errors.New("link out of step")
	// ErrStalled says that a frame was begun and not finished in time.
	ErrStalled = errors.New("link stalled within a frame")
	// ErrHostGone says that no host is connected to the port any more.
	ErrHostGone = errors.New("no host is connected")
)

// Pipe is what a link runs over; a net.Conn is one, and so is a Port.
type Pipe interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Frame is one unit of transport. Its meaning is the multiplexer's.
type Frame struct {
	Type   uint8
	Flags  uint8
	Stream uint32
	// Payload is at most MaxPayload bytes. That of a frame which was read
	// is valid until the next read.
	Payload []byte
}

// buffered is a pipe with what was read from it and not yet used. It outlives
// the epochs of a serial port.
type buffered struct {
	pipe Pipe
	buf  []byte
	r, w int
}

func newBuffered(p Pipe) *buffered {
	return &buffered{pipe: p, buf: make([]byte, idleSize)}
}

func (b *buffered) bytes() []byte { return b.buf[b.r:b.w] }

// more reads once, after making room.
func (b *buffered) more() error {
	switch {
	case b.r == b.w:
		b.r, b.w = 0, 0
	case len(b.buf)-b.r < maxFrame:
		copy(b.buf, b.buf[b.r:b.w])
		b.w -= b.r
		b.r = 0
	}
	if b.w == len(b.buf) {
		b.buf = append(make([]byte, 0, bufferSize), b.buf...)[:bufferSize]
	}
	n, err := b.pipe.Read(b.buf[b.w:])
	b.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// Conn is one epoch of a link: from a SYNC to the next, or to the end of the
// connection. One goroutine may read and one may write.
type Conn struct {
	in    *buffered
	key   uint64
	rseq  uint64
	wseq  uint64
	stall time.Duration
	close func() error
}

func newConn(in *buffered, nonce []byte, stall time.Duration, shut func() error) *Conn {
	h := fnv.New64a()
	h.Write([]byte("banger trailer"))
	h.Write(nonce)
	return &Conn{in: in, key: h.Sum64(), stall: stall, close: shut}
}

// trailer is never zero: zeros are what a cut frame is filled up with.
func (c *Conn) trailer(seq uint64) uint64 {
	t := c.key + seq*0x9E3779B97F4A7C15
	if t == 0 {
		return ^uint64(0)
	}
	return t
}

// Read reads the next frame into f. After an error the epoch is over.
func (c *Conn) Read(f *Frame) error {
	if err := c.need(HeaderSize, false); err != nil {
		return err
	}
	h := c.in.bytes()
	size := binary.BigEndian.Uint32(h[8:])
	if binary.BigEndian.Uint16(h) != frameMagic {
		return fmt.Errorf("%w: no frame where one should begin", ErrDesync)
	}
	if size > MaxPayload {
		return fmt.Errorf("%w: frame of %d bytes", ErrDesync, size)
	}
	total := HeaderSize + int(size) + TrailerSize
	if err := c.need(total, true); err != nil {
		return err
	}
	h = c.in.bytes()[:total]
	c.in.r += total
	if binary.BigEndian.Uint64(h[total-TrailerSize:]) != c.trailer(c.rseq) {
		return fmt.Errorf("%w: a frame was cut or lost", ErrDesync)
	}
	c.rseq++
	f.Type, f.Flags = h[2], h[3]
	f.Stream = binary.BigEndian.Uint32(h[4:])
	f.Payload = h[HeaderSize : HeaderSize+int(size) : HeaderSize+int(size)]
	return nil
}

// need reads until n bytes are buffered; once a frame has begun the stall
// limit runs.
func (c *Conn) need(n int, begun bool) error {
	limited := false
	for c.in.w-c.in.r < n {
		if c.stall > 0 && !limited && (begun || c.in.w > c.in.r) {
			limited = true
			if err := c.in.pipe.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
				return err
			}
		}
		if err := c.in.more(); err != nil {
			if limited && isTimeout(err) {
				return ErrStalled
			}
			return err
		}
	}
	if limited {
		return c.in.pipe.SetReadDeadline(time.Time{})
	}
	return nil
}

// Append adds the frame to b, as the next one to be written. Whatever was
// appended must be written, in that order.
func (c *Conn) Append(b []byte, f Frame) []byte {
	b = binary.BigEndian.AppendUint16(b, frameMagic)
	b = append(b, f.Type, f.Flags)
	b = binary.BigEndian.AppendUint32(b, f.Stream)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Payload)))
	b = append(b, f.Payload...)
	b = binary.BigEndian.AppendUint64(b, c.trailer(c.wseq))
	c.wseq++
	return b
}

// Write writes frames that Append made. After an error the epoch is over.
func (c *Conn) Write(b []byte) error {
	if c.stall > 0 {
		if err := c.in.pipe.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
			return err
		}
	}
	_, err := c.in.pipe.Write(b)
	if err != nil && c.stall > 0 && isTimeout(err) {
		return ErrStalled
	}
	return err
}

// Close ends the epoch and unblocks Read and Write. A connection is closed
// with it; a serial port stays open for the next host.
func (c *Conn) Close() error { return c.close() }

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
