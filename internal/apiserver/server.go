// Package apiserver is the daemon's door: it listens on a Unix socket, lets in
// only its own user, decodes a call, asks a room, encodes the answer. It holds
// no logic of VMs; what it needs of the rooms is declared in rooms.go.
package apiserver

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/banger-dev/banger/internal/api/banger/v1/bangerv1connect"
	"github.com/banger-dev/banger/internal/event"
)

// Limits of what a caller may send.
const (
	maxMessage = 4 << 20 // bytes of one message
	maxHeader  = 16 << 10
	// maxStreams is how many calls one connection may have open.
	maxStreams = 4096
)

// Server serves the contract.
type Server struct {
	rooms  Rooms
	log    *slog.Logger
	events *event.Log
	srv    *http.Server
}

// New makes a server over the rooms. base is the daemon's life: calls end with it.
func New(base context.Context, rooms Rooms, events *event.Log, log *slog.Logger) *Server {
	s := &Server{rooms: rooms, log: log, events: events}
	var protocols http.Protocols
	protocols.SetHTTP1(true) // curl --unix-socket
	protocols.SetUnencryptedHTTP2(true)
	s.srv = &http.Server{
		Handler:           s.Handler(),
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 256 << 10},
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// Handler is the contract as an HTTP handler.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	opts := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithInterceptors(translator{log: s.log}),
		connect.WithRecover(s.recovered),
	}
	mount := func(path string, h http.Handler) { mux.Handle(path, h) }
	mount(bangerv1connect.NewVMServiceHandler(&vmService{s: s}, opts...))
	mount(bangerv1connect.NewWorkspaceServiceHandler(&workspaceService{s: s}, opts...))
	mount(bangerv1connect.NewImageServiceHandler(&imageService{s: s}, opts...))
	mount(bangerv1connect.NewKernelServiceHandler(&kernelService{s: s}, opts...))
	mount(bangerv1connect.NewTemplateServiceHandler(&templateService{s: s}, opts...))
	mount(bangerv1connect.NewSystemServiceHandler(&systemService{s: s}, opts...))
	return mux
}

// recovered turns a defect into an answer: one call fails, the daemon goes on.
func (s *Server) recovered(_ context.Context, spec connect.Spec, _ http.Header, v any) error {
	s.log.Error("a call panicked", "call", spec.Procedure, "panic", v)
	return internalError()
}

// Serve answers calls until Shutdown; it gives http.ErrServerClosed then.
func (s *Server) Serve(l net.Listener) error { return s.srv.Serve(l) }

// Shutdown stops taking calls, gives those under way until ctx ends, then
// closes them.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.srv.Shutdown(ctx); err != nil {
		return s.srv.Close()
	}
	return nil
}
