package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/banger-dev/banger/internal/guest/link"
)

// Session is one end of the streams over one link.Conn.
type Session struct {
	conn   *link.Conn
	handle func(*Stream) // nil on the host
	done   chan struct{}
	wake   chan struct{}
	loops  sync.WaitGroup
	chunks chunkPool

	mu      sync.Mutex
	err     error
	streams map[uint32]*Stream
	fresh   int    // streams that have not sent their first frame yet
	lastID  uint32 // the newest stream's
	grown   int    // of all windows beyond FirstWindow
	strays  int
	urgent  queue
	bulk    queue
	out     []byte // frames to be written next
	spare   []byte
}

func start(conn *link.Conn, handle func(*Stream)) *Session {
	s := &Session{
		conn: conn, handle: handle,
		done: make(chan struct{}), wake: make(chan struct{}, 1),
		streams: make(map[uint32]*Stream),
	}
	s.loops.Add(2)
	go s.readLoop()
	go s.writeLoop()
	return s
}

// Done is closed when the session is over.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why the session is over; nil before.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session and all its streams, and waits for its goroutines.
func (s *Session) Close() error {
	s.fail(ErrEnded)
	s.loops.Wait()
	return nil
}

// Wait waits until the session is over and its goroutines are gone.
func (s *Session) Wait() error {
	s.loops.Wait()
	return s.Err()
}

// Streams is the number of streams that count against MaxStreams.
func (s *Session) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams) + s.fresh
}

func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	close(s.done)
	s.mu.Unlock()
	s.conn.Close()
}

// Open makes a stream. The peer hears of it with the first write.
func (s *Session) Open() (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if s.handle != nil {
		return nil, errors.New("only the host opens streams")
	}
	if len(s.streams)+s.fresh >= MaxStreams {
		return nil, ErrTooMany
	}
	s.fresh++
	return newStream(s), nil
}

// register gives a fresh stream its number: in the order of first frames, so
// that the guest sees rising numbers.
func (s *Session) register(st *Stream) {
	s.fresh--
	s.lastID++
	st.id = s.lastID
	s.streams[st.id] = st
}

func (s *Session) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Session) writeLoop() {
	defer s.loops.Done()
	for {
		s.mu.Lock()
		s.stage()
		batch := s.out
		s.out, s.spare = s.spare, nil
		if len(batch) == 0 {
			s.out = nil // many sessions are idle most of the time
		}
		over := s.err != nil
		s.mu.Unlock()
		if over {
			return
		}
		if len(batch) > 0 {
			if err := s.conn.Write(batch); err != nil {
				s.fail(linkError(err))
				return
			}
		}
		if len(batch) > 0 {
			s.mu.Lock()
			s.spare = batch[:0]
			s.mu.Unlock()
			continue
		}
		select {
		case <-s.wake:
		case <-s.done:
			return
		}
	}
}

// stage fills the next batch: control and small writes first, then bulk in
// turns of one frame.
func (s *Session) stage() {
	for len(s.out) < urgentMax {
		st := s.urgent.pop()
		if st == nil {
			break
		}
		st.emitControl()
		if st.small() {
			st.emitData()
		}
		st.schedule()
	}
	for len(s.out) < batchMax {
		st := s.bulk.pop()
		if st == nil {
			break
		}
		st.emitData()
		st.schedule()
	}
}

func (s *Session) readLoop() {
	defer s.loops.Done()
	var f link.Frame
	for {
		err := s.conn.Read(&f)
		if err == nil {
			err = s.receive(&f)
		} else {
			err = linkError(err)
		}
		if err != nil {
			s.fail(err)
			return
		}
	}
}

// linkError gives a lost link one face.
func linkError(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (s *Session) receive(f *link.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Type == frameData && f.Flags&flagOpen != 0 {
		if err := s.accept(f); err != nil {
			return err
		}
	}
	st := s.streams[f.Stream]
	if st == nil {
		return s.stray(f)
	}
	switch f.Type {
	case frameData:
		return st.receiveData(f)
	case frameCredit:
		n, err := number(f)
		if err != nil {
			return err
		}
		return st.receiveCredit(n)
	case frameReset:
		n, err := number(f)
		if err != nil {
			return err
		}
		return st.receiveReset(Code(n))
	case frameStop:
		return st.receiveStop(f)
	}
	return broke("frame of type %d", f.Type)
}

func (s *Session) accept(f *link.Frame) error {
	switch {
	case s.handle == nil:
		return broke("a guest opened a stream")
	case f.Stream <= s.lastID:
		return broke("stream %d opened after %d", f.Stream, s.lastID)
	case len(s.streams) >= MaxStreams:
		return broke("more than %d streams", MaxStreams)
	}
	s.lastID = f.Stream
	st := newStream(s)
	st.id = f.Stream
	st.begun = true
	s.streams[st.id] = st
	go s.handle(st)
	return nil
}

// stray judges a frame for a stream that is not: late control for one that
// has just ended is normal, in bounds; anything else is not.
func (s *Session) stray(f *link.Frame) error {
	if f.Type == frameData || f.Stream == 0 || f.Stream > s.lastID {
		return broke("frame of type %d for unknown stream %d", f.Type, f.Stream)
	}
	if s.strays++; s.strays > maxStrays*int(s.lastID) {
		return broke("%d frames for streams that have ended", s.strays)
	}
	return nil
}

func number(f *link.Frame) (uint32, error) {
	if len(f.Payload) != 4 {
		return 0, broke("control frame with %d bytes", len(f.Payload))
	}
	return binary.BigEndian.Uint32(f.Payload), nil
}

// queue is a first-in first-out list of streams; a stream is in it once.
type queue struct {
	items []*Stream
	head  int
}

func (q *queue) push(st *Stream) { q.items = append(q.items, st) }

func (q *queue) pop() *Stream {
	if q.head == len(q.items) {
		return nil
	}
	st := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	} else if q.head > 64 && 2*q.head > len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	if q == &st.s.urgent {
		st.inUrgent = false
	} else {
		st.inBulk = false
	}
	return st
}
