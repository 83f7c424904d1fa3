// Package mux carries many streams over one guest/link connection: the host
// opens them, the guest accepts. Every stream has its own credit, so that a
// reader that is slow holds up nobody but its own writer, and no peer can make
// the other side buffer more than it offered. It knows nothing of messages.
//
// A session has two goroutines, a reader that never waits for a stream and a
// writer that never waits for anything but the link. Small writes and control
// go first, bulk takes turns. Whatever a peer does against the rules ends the
// session with ErrProtocol.
package mux

import (
	"errors"
	"fmt"

	"github.com/banger-dev/banger/internal/guest/link"
)

// Limits of a session, in bytes but for MaxStreams.
const (
	// MaxStreams is how many streams may be open, those included whose end
	// the peer has not confirmed yet.
	MaxStreams = 4096
	// FirstWindow is what a peer may send on a fresh stream.
	FirstWindow = 4 << 10
	// MaxWindow is what a stream's window grows to while its reader keeps up.
	MaxWindow = 256 << 10
	// Budget bounds all windows of a session together.
	Budget = 32 << 20

	growth     = Budget - MaxStreams*FirstWindow
	smallWrite = 4 << 10   // up to here a write counts as interactive
	directMax  = 16 << 10  // of a batch may be staged by writers themselves
	urgentMax  = 48 << 10  // of a batch may be urgent while bulk waits
	batchMax   = 64 << 10  // a batch is closed when it has reached this
	maxStrays  = 16        // late frames per stream ever opened
	maxCredit  = MaxWindow // outstanding on a stream
)

// Types of frames.
const (
	frameData   = 1 // payload; flags may open the stream and end the sender's half
	frameCredit = 2 // payload: 4 bytes, what the receiver may send more
	frameReset  = 3 // payload: 4 bytes, why; ends both halves
	frameStop   = 4 // the sender of this reads no more
)

// Flags of data frames.
const (
	flagOpen = 1
	flagFin  = 2
)

// Code says why a stream was reset.
type Code uint32

// The codes of a reset.
const (
	Cancelled Code = 1 // nobody wants the answer any more
	Refused   Code = 2 // not taken up
	Failed    Code = 3 // cannot go on
)

// Errors a caller branches on.
var (
	// ErrProtocol says that the peer broke the protocol; the session is over.
	ErrProtocol = errors.New("the peer broke the protocol")
	// ErrStopped is a write's error when the peer reads no more.
	ErrStopped = errors.New("the peer reads no more")
	// ErrTooMany says that MaxStreams streams are open.
	ErrTooMany = errors.New("too many streams")
	// ErrEnded says that the session was closed on this side.
	ErrEnded = errors.New("the session has ended")
)

// ResetError is the error of a stream that the peer reset.
type ResetError struct{ Code Code }

// Error names the reason.
func (e *ResetError) Error() string {
	switch e.Code {
	case Cancelled:
		return "stream reset by the peer: cancelled"
	case Refused:
		return "stream reset by the peer: refused"
	}
	return fmt.Sprintf("stream reset by the peer: code %d", uint32(e.Code))
}

func broke(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Host starts the host's end of a session; it owns conn.
func Host(conn *link.Conn) *Session { return start(conn, nil) }

// Guest starts the guest's end; handle runs in a goroutine of its own for
// every stream and must close it. It owns conn.
func Guest(conn *link.Conn, handle func(*Stream)) *Session { return start(conn, handle) }
