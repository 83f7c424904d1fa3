package mux

import (
	"encoding/binary"

	"github.com/banger-dev/banger/internal/guest/link"
)

// Everything here is called under the session's lock.

// schedule queues the stream for what it has to send.
func (st *Stream) schedule() {
	if st.closed && !st.begun {
		return
	}
	fin := st.wantFin && !st.sendDone && len(st.out) == 0
	if !st.inUrgent && (st.grant > 0 || st.wantStop || st.wantReset || fin || st.small()) {
		st.inUrgent = true
		st.s.urgent.push(st)
		st.s.kick()
	}
	if !st.inBulk && !st.small() && len(st.out) > 0 && st.credit > 0 && !st.sendDone {
		st.inBulk = true
		st.s.bulk.push(st)
		st.s.kick()
	}
}

// small says whether the write in progress is an interactive one that fits.
func (st *Stream) small() bool {
	return len(st.out) > 0 && len(st.out) <= smallWrite && len(st.out) <= st.credit && !st.sendDone
}

// emitData stages one frame of the write in progress, or the bare end.
func (st *Stream) emitData() {
	n := min(len(st.out), st.credit, link.MaxPayload)
	fin := st.wantFin && n == len(st.out)
	if st.sendDone || n == 0 && !fin {
		return
	}
	f := link.Frame{Type: frameData, Payload: st.out[:n]}
	if !st.begun {
		st.begun = true
		st.s.register(st)
		f.Flags |= flagOpen
	}
	if fin {
		f.Flags |= flagFin
	}
	f.Stream = st.id
	st.s.out = st.s.conn.Append(st.s.out, f)
	st.credit -= n
	st.out = st.out[n:]
	if len(st.out) == 0 {
		st.out = nil
		signal(st.written)
	}
	if fin {
		st.endSend(nil)
	}
}

// emitControl stages what the stream has to say besides data.
func (st *Stream) emitControl() {
	if st.wantReset {
		st.wantReset, st.wantStop, st.grant = false, false, 0
		st.emitNumber(frameReset, uint32(st.resetCode))
		st.endSend(nil)
		return
	}
	if st.grant > 0 && !st.recvDone && !st.discard {
		st.emitNumber(frameCredit, uint32(st.grant))
	}
	st.grant = 0
	if st.wantFin && len(st.out) == 0 {
		st.emitData()
	}
	if st.wantStop {
		st.wantStop = false
		if !st.recvDone {
			st.s.out = st.s.conn.Append(st.s.out, link.Frame{Type: frameStop, Stream: st.id})
		}
	}
}

func (st *Stream) emitNumber(kind uint8, n uint32) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	st.s.out = st.s.conn.Append(st.s.out, link.Frame{Type: kind, Stream: st.id, Payload: b[:]})
}
