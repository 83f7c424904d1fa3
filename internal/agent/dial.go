package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
)

const dialLimit = 30 * time.Second

// dial joins the stream to an address in the guest until both ways have ended.
func (s *Server) dial(ctx context.Context, st *mux.Stream, body []byte) error {
	var req wire.DialRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	switch req.Network {
	case "agent":
		if req.Address != "ssh" {
			return errs.New(errs.Invalid, "bad_address", "the agent has no %q", req.Address)
		}
		if err := answer(st, empty, false); err != nil {
			return nil
		}
		s.sys.ServeSSH(ctx, st)
		return nil
	case "tcp", "unix":
	default:
		return errs.New(errs.Invalid, "bad_address", "unknown network %q", req.Network)
	}
	d := net.Dialer{Timeout: dialLimit}
	conn, err := d.DialContext(ctx, req.Network, req.Address)
	if err != nil {
		return dialError(err, &req)
	}
	defer conn.Close()
	if err := answer(st, empty, false); err != nil {
		return nil
	}
	join(st, conn)
	return nil
}

func dialError(err error, req *wire.DialRequest) error {
	kind, code := errs.Unavailable, "guest_dial"
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		code = "guest_refused"
	case errors.Is(err, os.ErrNotExist):
		kind, code = errs.NotFound, "no_socket"
	case errors.Is(err, os.ErrDeadlineExceeded):
		kind, code = errs.Timeout, "guest_dial_timeout"
	}
	return errs.Wrap(err, kind, code, "connect to %s in the guest", req.Address)
}

// halfCloser is a connection one way of which can end before the other.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// join copies both ways; the end of one is passed on, a failure ends both.
func join(a *mux.Stream, b net.Conn) {
	var both sync.WaitGroup
	copyTo := func(dst, src net.Conn) {
		_, err := io.Copy(struct{ io.Writer }{dst}, struct{ io.Reader }{src})
		if h, ok := dst.(halfCloser); ok && err == nil {
			h.CloseWrite()
			return
		}
		a.Close()
		b.Close()
	}
	both.Go(func() { copyTo(b, a) })
	both.Go(func() { copyTo(a, b) })
	both.Wait()
}
