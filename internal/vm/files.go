package vm

import (
	"context"
	"io"
	"net"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// client gives the client of a running VM's guest, which the caller shares
// with others and must not close, and a function to call when it is done.
func (s *Service) client(ctx context.Context, ref string) (*guest.Client, func(), error) {
	e, err := s.find(ref)
	if err != nil {
		return nil, nil, err
	}
	if err := s.awaitBoot(ctx, e); err != nil {
		return nil, nil, err
	}
	if err := Legal(VerbExec, e.name(), s.state(e)); err != nil {
		return nil, nil, err
	}
	c, err := e.client(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c, e.use(), nil
}

// CopyIn unpacks a tar stream in the guest.
func (s *Service) CopyIn(ctx context.Context, ref string, req wire.TarInRequest, r io.Reader) (wire.TarReply, error) {
	c, done, err := s.client(ctx, ref)
	if err != nil {
		return wire.TarReply{}, err
	}
	defer done()
	return c.TarIn(ctx, req, r)
}

// CopyOut copies paths of the guest as a tar stream; its bytes are the guest's.
func (s *Service) CopyOut(ctx context.Context, ref string, req wire.TarOutRequest, w io.Writer) (wire.TarReply, error) {
	c, done, err := s.client(ctx, ref)
	if err != nil {
		return wire.TarReply{}, err
	}
	defer done()
	return c.TarOut(ctx, req, w)
}

// Dial joins the caller to an address inside the guest.
func (s *Service) Dial(ctx context.Context, ref, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "unix", "agent":
	default:
		return nil, errs.New(errs.Invalid, "network_invalid", "network: %q is not tcp, unix or agent", clip(network, 40)).WithHint("for example: tcp 127.0.0.1:22")
	}
	c, done, err := s.client(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer done() // a connection may last: it does not hold the init up
	return c.DialGuest(ctx, network, address)
}

// SSHAccess gives what an ssh client needs to enter a VM.
func (s *Service) SSHAccess(_ context.Context, ref string) (View, Access, error) {
	v, err := s.Get(ref)
	if err != nil {
		return View{}, Access{}, err
	}
	key, err := readHostKey(v.Dir)
	if err != nil {
		return View{}, Access{}, errs.New(errs.Conflict, "vm_never_started", "%q was never started, so it has no host key yet", v.Name).
			WithHint("banger vm start %s", v.Name).Because(err)
	}
	a, err := s.SSH.Access(v.Dir, v.ID, v.Name, key.Public)
	return v, a, err
}
