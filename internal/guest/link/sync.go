package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"time"
)

// A record is magic, nonce and a check of the nonce. The magics are arbitrary
// bytes that no text contains.
const (
	magicSize  = len(syncMagic)
	nonceSize  = 16
	recordSize = magicSize + nonceSize + 8
)

const (
	syncMagic = "\xb7SYNC\x00banger\x01\xf5\x9a\xe2"
	ackMagic  = "\xb7SACK\x00banger\x01\xc6\x31\x84"
	nakMagic  = "\xb7SNAK\x00banger\x01\x1e\xd7\xa9"
)

// maxStale bounds what a host drops while it waits for its ack: what an
// earlier epoch can have left in the guest's and the hypervisor's queues.
const maxStale = 64 << 20

// lostAfter is how long a guest out of step hears nothing before it says so.
const lostAfter = time.Second

func appendRecord(b []byte, magic string, nonce []byte) []byte {
	b = append(b, magic...)
	b = append(b, nonce...)
	return binary.BigEndian.AppendUint64(b, recordCheck(nonce))
}

func recordCheck(nonce []byte) uint64 {
	h := fnv.New64a()
	h.Write([]byte("banger record"))
	h.Write(nonce)
	return h.Sum64()
}

// findRecord looks for a sound record. It gives the nonce, and how many bytes
// are of no more use.
func findRecord(b []byte, magic string) (nonce []byte, used int) {
	for {
		i := bytes.Index(b[used:], []byte(magic))
		if i < 0 {
			return nil, max(used, len(b)-magicSize+1)
		}
		used += i
		if len(b)-used < recordSize {
			return nil, used
		}
		rec := b[used : used+recordSize]
		nonce := rec[magicSize : magicSize+nonceSize]
		if binary.BigEndian.Uint64(rec[magicSize+nonceSize:]) == recordCheck(nonce) {
			return nonce, used + recordSize
		}
		used++
	}
}

// Host synchronises the host's end of a pipe: it sends SYNC and waits for the
// guest's ack until ctx ends. Serial says that an earlier host may have been
// cut off in mid-frame. The Conn owns the pipe; on failure it is closed.
// Stall bounds how long a frame may take once begun, in either direction.
func Host(ctx context.Context, pipe Pipe, serial bool, stall time.Duration) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { pipe.Close() })
	conn, err := hostSync(pipe, serial, stall)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		pipe.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("synchronise with the guest: %w", context.Cause(ctx))
		}
		return nil, fmt.Errorf("synchronise with the guest: %w", err)
	}
	return conn, nil
}

func hostSync(pipe Pipe, serial bool, stall time.Duration) (*Conn, error) {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	var hello []byte
	if serial {
		hello = make([]byte, maxFrame, maxFrame+recordSize)
	}
	if _, err := pipe.Write(appendRecord(hello, syncMagic, nonce)); err != nil {
		return nil, err
	}
	in := newBuffered(pipe)
	for stale := 0; stale <= maxStale; {
		got, used := findRecord(in.bytes(), ackMagic)
		in.r += used
		stale += used
		if got != nil {
			if bytes.Equal(got, nonce) {
				return newConn(in, nonce, stall, pipe.Close), nil
			}
			continue
		}
		if err := in.more(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %d MiB and no answer among them", ErrDesync, maxStale>>20)
}

// Acceptor is the guest's end of a pipe, on which hosts come and go.
type Acceptor struct {
	in *buffered
	// keep says that the pipe outlives an epoch.
	keep bool
	// told says that a host has been told that we are out of step.
	told bool
}

// NewAcceptor takes a pipe; keep leaves it open between epochs, as a serial
// port's must be.
func NewAcceptor(pipe Pipe, keep bool) *Acceptor {
	return &Acceptor{in: newBuffered(pipe), keep: keep, told: true}
}

// Accept waits for the next SYNC, acknowledges it and gives its epoch. The
// epoch before must be closed, and its reader and writer gone. Closing the
// pipe ends the wait.
func (a *Acceptor) Accept() (*Conn, error) {
	if err := a.in.pipe.SetWriteDeadline(time.Time{}); err != nil {
		return nil, err
	}
	nonce, err := a.hunt()
	if err != nil {
		return nil, err
	}
	if _, err := a.in.pipe.Write(appendRecord(nil, ackMagic, nonce)); err != nil {
		return nil, err
	}
	a.told = false
	shut := a.in.pipe.Close
	if a.keep {
		shut = a.abort
	}
	return newConn(a.in, nonce, 0, shut), nil
}

func (a *Acceptor) hunt() ([]byte, error) {
	for {
		nonce, used := findRecord(a.in.bytes(), syncMagic)
		if nonce != nil {
			nonce = bytes.Clone(nonce)
		}
		a.in.r += used
		if nonce != nil {
			return nonce, a.in.pipe.SetReadDeadline(time.Time{})
		}
		var limit time.Time
		if !a.told {
			limit = time.Now().Add(lostAfter)
		}
		if err := a.in.pipe.SetReadDeadline(limit); err != nil {
			return nil, err
		}
		err := a.in.more()
		switch {
		case err == nil || errors.Is(err, ErrHostGone):
		case isTimeout(err) && !a.told:
			if err := a.tell(); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
}

// tell makes a host that believes to be in step see that it is not; otherwise
// it would wait for answers to frames that never arrived.
func (a *Acceptor) tell() error {
	a.told = true
	if err := a.in.pipe.SetWriteDeadline(time.Now().Add(lostAfter)); err != nil {
		return err
	}
	if _, err := a.in.pipe.Write([]byte(nakMagic)); err != nil && !isTimeout(err) {
		return err
	}
	return a.in.pipe.SetWriteDeadline(time.Time{})
}

// abort unblocks the epoch's reader and writer and leaves the pipe open.
func (a *Acceptor) abort() error {
	now := time.Unix(1, 0)
	return errors.Join(a.in.pipe.SetReadDeadline(now), a.in.pipe.SetWriteDeadline(now))
}
