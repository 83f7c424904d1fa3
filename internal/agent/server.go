package agent

import (
	"context"
	"errors"
	"io"
	"net"
)

// Server answers the host. One Server serves any number of links; commands
// belong to it and not to a link.
type Server struct{ sys System }

// NewServer makes a server that speaks for sys.
func NewServer(sys System) *Server { return &Server{sys: sys} }

// Serve accepts links (vsock, Unix sockets) until ctx ends or the listener
// fails, and returns when every link has ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return errNotBuilt }

// Port is an open virtio-serial port: one byte pipe on which hosts come and go.
type Port interface {
	io.ReadWriteCloser
}

// ServePort serves the hosts that come and go on a serial port until ctx ends
// or the port fails.
func (s *Server) ServePort(ctx context.Context, p Port) error { return errNotBuilt }

var errNotBuilt = errors.New("not built yet")
