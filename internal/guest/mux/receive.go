package mux

import (
	"errors"
	"io"

	"github.com/banger-dev/banger/internal/guest/link"
)

// What the peer's frames do to a stream. Called under the session's lock; an
// error ends the session.

func (st *Stream) receiveData(f *link.Frame) error {
	n := len(f.Payload)
	switch {
	case st.recvDone:
		return broke("data after the end of stream %d", st.id)
	case n > st.allow:
		return broke("%d bytes on stream %d, %d allowed", n, st.id, st.allow)
	case n == 0 && f.Flags == 0:
		return broke("empty frame")
	}
	st.allow -= n
	if n > 0 && !st.discard {
		st.in.write(f.Payload, &st.s.chunks)
		signal(st.readable)
	}
	if f.Flags&flagFin != 0 {
		st.endRecv(io.EOF)
	}
	return nil
}

func (st *Stream) receiveCredit(n uint32) error {
	if n == 0 || n > maxCredit || st.credit+int(n) > maxCredit {
		return broke("credit of %d on top of %d", n, st.credit)
	}
	st.credit += int(n)
	st.schedule()
	return nil
}

func (st *Stream) receiveReset(code Code) error {
	var before *ResetError
	if errors.As(st.recvErr, &before) {
		return broke("second reset of stream %d", st.id)
	}
	err := &ResetError{Code: code}
	if !st.stopped {
		close(st.gone)
	}
	if !st.sendDone {
		st.cutWrite(err)
		st.sendErr = err
		if !st.wantReset {
			st.wantReset, st.resetCode = true, code
		}
		st.schedule()
	}
	st.in.drop(&st.s.chunks)
	st.recvErr = err
	st.endRecv(err)
	return nil
}

func (st *Stream) receiveStop(f *link.Frame) error {
	if len(f.Payload) != 0 {
		return broke("control frame with %d bytes", len(f.Payload))
	}
	if st.stopped {
		return broke("second stop of stream %d", st.id)
	}
	st.stopped = true
	close(st.gone)
	if st.sendDone {
		return nil
	}
	st.cutWrite(ErrStopped)
	st.sendErr = ErrStopped
	st.wantFin = true
	signal(st.written)
	st.schedule()
	return nil
}
