package agent

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// Options say where things are in the guest; the zero value is a real guest's.
type Options struct {
	// CgroupRoot is where the cgroup2 hierarchy is mounted; "" means
	// /sys/fs/cgroup. Commands run in wire.CommandCgroup beneath it.
	CgroupRoot string
	// NoCgroup leaves commands in the agent's own control group.
	NoCgroup bool
	// MaxExecs bounds how many commands are kept; 0 means wire.MaxExecs.
	MaxExecs int
}

// Server answers the host. One Server serves any number of links; commands
// belong to it and not to a link.
type Server struct {
	sys   System
	execs *execs
}

// NewServer makes a server that speaks for sys.
func NewServer(sys System, opts Options) *Server {
	return &Server{sys: sys, execs: newExecs(opts)}
}

// Execs is the number of commands that the agent keeps, ended ones included.
func (s *Server) Execs() int { return s.execs.count() }

// Close kills every command that is left and waits until they are gone.
func (s *Server) Close() { s.execs.close() }

// Serve accepts links (vsock, Unix sockets) until ctx ends or the listener
// fails, and returns when every link has ended. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var links sync.WaitGroup
	defer links.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			cancel()
			if context.Cause(ctx) != nil && errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		links.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			conn, err := link.NewAcceptor(c, false).Accept()
			if err == nil {
				s.serveConn(ctx, conn)
			}
		})
	}
}

// ServePort serves the hosts that come and go on a serial port until ctx ends
// (nil) or the port fails. It closes the port.
func (s *Server) ServePort(ctx context.Context, port link.Pipe) error {
	defer port.Close()
	stop := context.AfterFunc(ctx, func() { port.Close() })
	defer stop()
	acceptor := link.NewAcceptor(port, true)
	for {
		conn, err := acceptor.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		s.serveConn(ctx, conn)
	}
}

// serveConn serves one host until the epoch ends. Calls that are still under
// way have their context cancelled and are not waited for: a slow one must not
// keep the next host out.
func (s *Server) serveConn(ctx context.Context, conn *link.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var greeted atomic.Bool
	session := mux.Guest(conn, func(st *mux.Stream) { s.handle(ctx, st, &greeted) })
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	_ = session.Wait() // how a host goes is its own affair
}

// handle serves one stream.
func (s *Server) handle(ctx context.Context, st *mux.Stream, greeted *atomic.Bool) {
	defer st.Close()
	kind, body, err := wire.ReadMessage(st)
	if err != nil {
		return
	}
	var req wire.Request
	if err := wire.Decode(body, &req); err != nil || kind != wire.KindRequest {
		refuse(st, errs.New(errs.Invalid, "bad_request", "the first message is no request"))
		return
	}
	if req.Method == wire.MethodHello {
		greeted.Store(true)
	} else if !greeted.Load() {
		refuse(st, errs.New(errs.Conflict, "no_hello", "say hello first"))
		return
	}
	switch req.Method {
	case wire.MethodExec:
		err = s.exec(ctx, st, req.Body)
	case wire.MethodAttach:
		err = s.attach(st, req.Body)
	case wire.MethodTarIn:
		err = tarIn(st, req.Body)
	case wire.MethodTarOut:
		err = tarOut(st, req.Body)
	case wire.MethodDial:
		err = s.dial(ctx, st, req.Body)
	default:
		err = s.unary(ctx, st, &req)
	}
	if err != nil {
		refuse(st, err)
	}
}

// refuse answers with an error.
func refuse(st *mux.Stream, err error) {
	e := wire.Error{Kind: string(errs.KindOf(err)), Code: errs.CodeOf(err), Message: err.Error()}
	if b, err := wire.AppendMessage(nil, wire.KindError, &e); err == nil {
		_, _ = st.WriteLast(b) // a host that is gone hears nothing
	}
}

// answer sends a reply; last says that nothing follows.
func answer(st *mux.Stream, m wire.Message, last bool) error {
	b, err := wire.AppendMessage(nil, wire.KindReply, m)
	if err != nil {
		return err
	}
	if last {
		_, err = st.WriteLast(b)
	} else {
		_, err = st.Write(b)
	}
	return err
}

// decode reads a request's body.
func decode(body []byte, m wire.Message) error {
	if err := wire.Decode(body, m); err != nil {
		return errs.Wrap(err, errs.Invalid, "bad_request", "read the request")
	}
	return nil
}
