package mux

import (
	"context"
	"net"
	"os"
	"sync"
	"time"
)

// Stream is one stream of a session, and a net.Conn. Reading and writing may
// go on at the same time; Close, Reset and deadlines interrupt both.
type Stream struct {
	s  *Session
	id uint32

	wmu      sync.Mutex // one writer at a time
	readable chan struct{}
	written  chan struct{}
	gone     chan struct{} // closed when the peer wants nothing more
	rdead    deadline
	wdead    deadline

	// What follows is under s.mu.

	begun    bool   // the peer knows the stream
	closed   bool   // Close or Reset was called here
	out      []byte // left of the write in progress
	cut      int    // left of a write that was ended early,
	cutErr   error  // and why
	credit   int    // what the peer lets us send
	wantFin  bool
	sendDone bool  // our half has ended: FIN or RESET is staged
	sendErr  error // why writes fail
	stopped  bool  // the peer reads no more

	in       buffer
	allow    int // what the peer may still send
	window   int
	due      int // read and not yet granted again
	discard  bool
	recvDone bool  // the peer's half has ended
	recvErr  error // what reads end with once in is empty

	grant       int // to be sent
	wantStop    bool
	wantReset   bool
	resetCode   Code
	inUrgent    bool
	inBulk      bool
	unwatched   bool // budget was given back
	unlistening bool // removed from the session
}

func newStream(s *Session) *Stream {
	return &Stream{
		s: s, credit: FirstWindow, allow: FirstWindow, window: FirstWindow,
		readable: make(chan struct{}, 1), written: make(chan struct{}, 1),
		gone: make(chan struct{}),
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Read reads what the peer wrote; io.EOF after its half was closed in order.
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		st.s.mu.Lock()
		if st.in.size > 0 && !st.closed {
			n := st.in.read(p, &st.s.chunks)
			st.consumed(n)
			st.s.mu.Unlock()
			return n, nil
		}
		err := st.readEnd()
		st.s.mu.Unlock()
		if err != nil {
			return 0, err
		}
		select {
		case <-st.readable:
		case <-st.s.done:
		case <-st.rdead.passed():
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (st *Stream) readEnd() error {
	switch {
	case st.closed:
		return net.ErrClosed
	case st.recvErr != nil:
		return st.recvErr
	case st.s.err != nil:
		return st.s.err
	}
	return nil
}

// consumed grants the peer what was read, and a wider window while the reader
// is faster than the link.
func (st *Stream) consumed(n int) {
	st.release()
	if st.recvDone || st.discard {
		return
	}
	st.due += n
	if st.due < st.window/2 {
		return
	}
	more := st.due
	st.due = 0
	if wider := min(st.window, MaxWindow-st.window); st.in.size == 0 && wider > 0 && st.s.grown+wider <= growth {
		st.s.grown += wider
		st.window += wider
		more += wider
	}
	st.grant += more
	st.allow += more
	st.schedule()
}

// Write writes p and returns when all of it is on its way.
func (st *Stream) Write(p []byte) (int, error) { return st.write(p, false) }

// WriteLast writes p and ends this half of the stream with it.
func (st *Stream) WriteLast(p []byte) (int, error) { return st.write(p, true) }

func (st *Stream) write(p []byte, last bool) (int, error) {
	st.wmu.Lock()
	defer st.wmu.Unlock()
	s := st.s
	s.mu.Lock()
	if err := st.writeEnd(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	st.out = p
	st.wantFin = st.wantFin || last
	if len(p) <= min(smallWrite, st.credit) && len(s.out) < directMax {
		st.emitData()
		st.schedule()
		s.kick()
	} else {
		st.schedule()
	}
	s.mu.Unlock()
	for {
		s.mu.Lock()
		if len(st.out) > 0 && s.err != nil {
			st.cutWrite(s.err)
		}
		left, err := len(st.out)+st.cut, st.cutErr
		if st.cut > 0 || left == 0 {
			st.cut, st.cutErr = 0, nil
			s.mu.Unlock()
			return len(p) - left, err
		}
		s.mu.Unlock()
		select {
		case <-st.written:
		case <-s.done:
		case <-st.wdead.passed():
			s.mu.Lock()
			st.cutWrite(os.ErrDeadlineExceeded)
			s.mu.Unlock()
		}
	}
}

// cutWrite ends the write in progress, if any; what is left of it is not sent.
func (st *Stream) cutWrite(err error) {
	if len(st.out) > 0 {
		st.cut, st.cutErr, st.out = len(st.out), err, nil
		signal(st.written)
	}
}

func (st *Stream) writeEnd() error {
	switch {
	case st.sendErr != nil:
		return st.sendErr
	case st.closed || st.sendDone || st.wantFin && len(st.out) == 0:
		return net.ErrClosed
	case st.s.err != nil:
		return st.s.err
	}
	return nil
}

// CloseWrite ends this half of the stream; reading goes on.
func (st *Stream) CloseWrite() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.s.err != nil {
		return st.s.err
	}
	if !st.sendDone {
		st.wantFin = true
		st.schedule()
	}
	return nil
}

// Close ends both halves: what was written still reaches the peer, what it
// still writes is dropped and it is told so. Close never waits.
func (st *Stream) Close() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.closed {
		return nil
	}
	st.leave()
	if !st.begun {
		return nil
	}
	st.wantFin = !st.sendDone
	if !st.recvDone {
		st.discard, st.wantStop = true, true
	}
	st.schedule()
	return nil
}

// Reset ends both halves at once; what is under way is dropped.
func (st *Stream) Reset(code Code) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.closed {
		return
	}
	st.leave()
	if !st.begun || st.unlistening {
		return
	}
	st.discard, st.wantReset, st.resetCode = true, true, code
	st.schedule()
}

// leave is what Close and Reset have in common.
func (st *Stream) leave() {
	st.closed = true
	st.cutWrite(net.ErrClosed)
	st.in.drop(&st.s.chunks)
	st.release()
	if !st.begun {
		st.s.fresh--
		st.sendDone, st.recvDone = true, true
	}
	signal(st.readable)
	signal(st.written)
}

// Gone is closed when the peer has reset the stream or reads no more; a session
// that ends closes its Done only.
func (st *Stream) Gone() <-chan struct{} { return st.gone }

// Session is the stream's.
func (st *Stream) Session() *Session { return st.s }

// ResetOn resets the stream when ctx ends, unless stop was called before.
func (st *Stream) ResetOn(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { st.Reset(Cancelled) })
}

func (st *Stream) endSend(err error) {
	st.sendDone = true
	if st.sendErr == nil {
		st.sendErr = err
	}
	signal(st.written)
	st.settle()
}

func (st *Stream) endRecv(err error) {
	st.recvDone = true
	if st.recvErr == nil {
		st.recvErr = err
	}
	signal(st.readable)
	st.settle()
}

// settle forgets a stream that has ended both ways.
func (st *Stream) settle() {
	if st.sendDone && st.recvDone && !st.unlistening {
		st.unlistening = true
		delete(st.s.streams, st.id)
		st.release()
	}
}

// release gives the window's growth back once nothing can fill it again.
func (st *Stream) release() {
	if (st.unlistening || st.closed) && st.in.size == 0 && !st.unwatched {
		st.unwatched = true
		st.s.grown -= st.window - FirstWindow
	}
}

// LocalAddr names nothing; it makes a Stream a net.Conn.
func (st *Stream) LocalAddr() net.Addr { return addr{} }

// RemoteAddr names nothing either.
func (st *Stream) RemoteAddr() net.Addr { return addr{} }

// SetDeadline bounds reads and writes.
func (st *Stream) SetDeadline(t time.Time) error {
	st.rdead.set(t)
	st.wdead.set(t)
	return nil
}

// SetReadDeadline bounds reads.
func (st *Stream) SetReadDeadline(t time.Time) error { st.rdead.set(t); return nil }

// SetWriteDeadline bounds writes.
func (st *Stream) SetWriteDeadline(t time.Time) error { st.wdead.set(t); return nil }

type addr struct{}

func (addr) Network() string { return "banger" }
func (addr) String() string  { return "guest" }
