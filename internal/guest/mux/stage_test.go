package mux

import (
	"bytes"
	"testing"

	"github.com/banger-dev/banger/internal/guest/link"
)

// staged gives the frames of the next batch.
func staged(t *testing.T, s *Session) []link.Frame {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stage()
	var out []link.Frame
	for b := s.out; len(b) > 0; {
		n := int(b[8])<<24 | int(b[9])<<16 | int(b[10])<<8 | int(b[11])
		out = append(out, link.Frame{Type: b[2], Flags: b[3], Stream: uint32(b[7]), Payload: b[link.HeaderSize : link.HeaderSize+n]})
		b = b[link.HeaderSize+n+link.TrailerSize:]
	}
	s.out = nil
	return out
}

// idle is a host's session without its loops, and streams with much credit.
func idle(t *testing.T, n int) (*Session, []*Stream) {
	t.Helper()
	conn, _ := connPair(t)
	t.Cleanup(func() { conn.Close() })
	s := &Session{conn: conn, done: make(chan struct{}), wake: make(chan struct{}, 1), streams: make(map[uint32]*Stream)}
	streams := make([]*Stream, n)
	for i := range streams {
		st, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		st.credit = MaxWindow
		streams[i] = st
	}
	return s, streams
}

func (st *Stream) want(size int) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.out = make([]byte, size)
	st.schedule()
}

func TestSmallWritesAndControlGoBeforeBulk(t *testing.T) {
	s, st := idle(t, 3)
	st[0].want(200_000)
	staged(t, s)
	st[1].want(100)
	st[2].want(50)
	s.mu.Lock()
	st[0].grant = 77
	st[0].schedule()
	s.mu.Unlock()
	frames := staged(t, s)
	if len(frames) < 4 || len(frames[0].Payload) != 100 || len(frames[1].Payload) != 50 ||
		frames[2].Type != frameCredit || !bytes.Equal(frames[2].Payload, []byte{0, 0, 0, 77}) || len(frames[3].Payload) != link.MaxPayload {
		t.Errorf("%d frames: %+v", len(frames), frames[:min(3, len(frames))])
	}
}

func TestBulkTakesTurns(t *testing.T) {
	s, st := idle(t, 3)
	for _, x := range st {
		x.want(MaxWindow)
	}
	turns := map[uint32]int{}
	for range 6 {
		size := 0
		for _, f := range staged(t, s) {
			turns[f.Stream]++
			size += len(f.Payload)
		}
		if size > batchMax+link.MaxPayload {
			t.Errorf("a batch of %d bytes", size)
		}
	}
	if turns[1] != turns[2] || turns[2] != turns[3] {
		t.Errorf("turns: %v", turns)
	}
}

func TestManySmallWritersDoNotStarveBulk(t *testing.T) {
	s, st := idle(t, 200)
	st[0].want(MaxWindow)
	for _, x := range st[1:] {
		x.want(smallWrite)
	}
	bulk := 0
	for range 4 {
		for _, f := range staged(t, s) {
			if len(f.Payload) == link.MaxPayload {
				bulk++
			}
		}
	}
	if bulk < 3 {
		t.Errorf("%d turns of bulk in four batches", bulk)
	}
}

func FuzzPeer(f *testing.F) {
	f.Add([]byte{1, 1, 1, 3, 2, 0, 1, 4, 3, 0, 1, 4, 4, 0, 1, 0}, false)
	f.Add([]byte{1, 3, 1, 9, 1, 2, 1, 0, 3, 0, 1, 4}, true)
	f.Fuzz(func(t *testing.T, b []byte, host bool) {
		conn, _ := connPair(t)
		defer conn.Close()
		s := &Session{conn: conn, done: make(chan struct{}), wake: make(chan struct{}, 1), streams: make(map[uint32]*Stream)}
		if !host {
			s.handle = func(*Stream) {}
		}
		var mine []*Stream
		for range 3 {
			if st, err := s.Open(); err == nil {
				st.write(nil, false)
				st.want(10)
				mine = append(mine, st)
			}
		}
		for ; len(b) >= 4; b = b[4:] {
			payload := make([]byte, int(b[3])*20)
			if b[0] != frameData {
				payload = bytes.Repeat([]byte{0, 0, b[3], 1}, int(b[3])%3)
			}
			err := s.receive(&link.Frame{Type: b[0] % 6, Flags: b[1] % 4, Stream: uint32(b[2] % 8), Payload: payload})
			if err != nil {
				break
			}
			s.mu.Lock()
			s.stage()
			s.out = nil
			if len(s.streams)+s.fresh < 0 || s.grown < 0 {
				t.Fatal("books out of balance")
			}
			s.mu.Unlock()
		}
		for _, st := range mine {
			st.Close()
		}
	})
}
