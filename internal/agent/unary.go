package agent

import (
	"context"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// unary does a method that answers with one message. Its context ends when the
// host gives up.
func (s *Server) unary(ctx context.Context, st *mux.Stream, req *wire.Request) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-st.Gone():
			cancel()
		case <-st.Session().Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	reply, err := s.call(ctx, req)
	if err != nil {
		return err
	}
	return answer(st, reply, true)
}

// with decodes a request, does f and gives its reply.
func with[T any, M interface {
	*T
	wire.Message
}, R wire.Message](body []byte, f func(T) (R, error)) (wire.Message, error) {
	var req T
	if err := decode(body, M(&req)); err != nil {
		return nil, err
	}
	reply, err := f(req)
	if err != nil {
		return nil, err
	}
	return reply, nil
}

var empty = &wire.Empty{}

func (s *Server) call(ctx context.Context, req *wire.Request) (wire.Message, error) {
	switch req.Method {
	case wire.MethodHello:
		return with(req.Body, s.hello)
	case wire.MethodIdentity:
		return with(req.Body, func(r wire.Identity) (*wire.IdentityReply, error) {
			reply, err := s.sys.Identity(ctx, r)
			return &reply, err
		})
	case wire.MethodHandover:
		return empty, s.sys.Handover(ctx)
	case wire.MethodPrepare:
		return with(req.Body, func(r wire.PrepareRequest) (*wire.PrepareReply, error) {
			reply, err := s.sys.Prepare(ctx, r)
			return &reply, err
		})
	case wire.MethodStats:
		stats, err := s.sys.Stats(ctx)
		stats.Execs = uint32(s.execs.count())
		return &stats, err
	case wire.MethodClock:
		return with(req.Body, func(r wire.ClockRequest) (*wire.Empty, error) { return empty, s.sys.Clock(ctx, r) })
	case wire.MethodGrow:
		return with(req.Body, func(r wire.GrowRequest) (*wire.Empty, error) { return empty, s.sys.Grow(ctx, r) })
	case wire.MethodWait:
		return with(req.Body, func(r wire.WaitRequest) (*wire.WaitReply, error) {
			reply, err := s.sys.Wait(ctx, r)
			return &reply, err
		})
	case wire.MethodShutdown:
		return with(req.Body, func(r wire.ShutdownRequest) (*wire.Empty, error) { return empty, s.sys.Shutdown(ctx, r) })
	case wire.MethodSync:
		return empty, s.sys.Sync(ctx)
	}
	return nil, errs.New(errs.Unsupported, "unknown_method", "this agent cannot %q", req.Method)
}

// hello proves who the guest is.
func (s *Server) hello(req wire.HelloRequest) (*wire.HelloReply, error) {
	if req.MinVersion > wire.Version || req.Version < wire.MinVersion {
		return nil, errs.New(errs.Unsupported, "agent_version", "this agent speaks protocol %d to %d, the host %d to %d",
			wire.MinVersion, wire.Version, req.MinVersion, req.Version)
	}
	if len(req.Nonce) < 16 {
		return nil, errs.New(errs.Invalid, "bad_request", "a nonce of %d bytes", len(req.Nonce))
	}
	reply := s.sys.Info()
	reply.Version = min(wire.Version, req.Version)
	reply.Proof = wire.Proof(s.sys.Token(), req.Nonce)
	return &reply, nil
}
