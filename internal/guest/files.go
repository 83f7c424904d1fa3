package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// copySize is what is read and written at once.
const copySize = 64 << 10

// TarIn unpacks a tar stream in the guest. Reading r is not interrupted by
// ctx: close it as well where it may block.
func (c *Client) TarIn(ctx context.Context, req wire.TarInRequest, r io.Reader) (wire.TarReply, error) {
	st, stop, err := c.begin(ctx, wire.MethodTarIn, &req, false)
	if err != nil {
		return wire.TarReply{}, err
	}
	defer st.Close()
	defer stop()
	if err := c.feed(ctx, st, r); err != nil {
		return wire.TarReply{}, err
	}
	var reply wire.TarReply
	err = c.answer(ctx, wire.MethodTarIn, st, &reply)
	return reply, err
}

// feed sends r. A guest that stops reading has an answer to give, usually an
// error, which the caller then reads.
func (c *Client) feed(ctx context.Context, st *mux.Stream, r io.Reader) error {
	buf := make([]byte, copySize)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := st.Write(buf[:n]); errors.Is(werr, mux.ErrStopped) {
				return nil
			} else if werr != nil {
				return c.ended(ctx, werr)
			}
		}
		if errors.Is(err, io.EOF) {
			if err := st.CloseWrite(); err != nil {
				return c.ended(ctx, err)
			}
			return nil
		}
		if err != nil {
			st.Reset(mux.Cancelled)
			return fmt.Errorf("read what is to be copied: %w", err)
		}
	}
}

// TarOut copies a tar stream out of the guest; its bytes are the guest's and
// must be treated as hostile, their amount included. Writing to w is not
// interrupted by ctx.
func (c *Client) TarOut(ctx context.Context, req wire.TarOutRequest, w io.Writer) (wire.TarReply, error) {
	st, stop, err := c.begin(ctx, wire.MethodTarOut, &req, true)
	if err != nil {
		return wire.TarReply{}, err
	}
	defer st.Close()
	defer stop()
	for {
		kind, body, err := wire.ReadMessage(st)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: files ended without an answer", ErrMisbehaved)
			}
			return wire.TarReply{}, c.ended(ctx, err)
		}
		if kind != wire.KindItem {
			var reply wire.TarReply
			err := c.explain(settle(kind, body, &reply))
			return reply, err
		}
		if _, err := w.Write(body); err != nil {
			return wire.TarReply{}, fmt.Errorf("write what was copied: %w", err)
		}
	}
}

// DialGuest connects to an address inside the guest ("tcp", "unix", or
// "agent" "ssh"). ctx bounds the dialling only. The connection can be closed
// for writing (CloseWrite).
func (c *Client) DialGuest(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.CallTimeout+idle, noAnswer(wire.MethodDial))
	defer cancel()
	st, stop, err := c.begin(ctx, wire.MethodDial, &wire.DialRequest{Network: network, Address: address}, false)
	if err != nil {
		return nil, err
	}
	if err := c.answer(ctx, wire.MethodDial, st, &wire.Empty{}); err != nil {
		stop()
		st.Close()
		return nil, err
	}
	if !stop() {
		st.Close()
		return nil, context.Cause(ctx)
	}
	return st, st.SetDeadline(time.Time{})
}
