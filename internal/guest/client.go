// Package guest is the daemon's port to the agent in a guest: a Client speaks
// guest/wire over one link (guest/link) carrying many streams (guest/mux).
// It knows endpoints as plain data and nothing of hypervisors' processes;
// everything that comes back from a guest is bounded, timed and checked here.
package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// Options tune a Client; the zero value is right for the daemon.
type Options struct {
	// CallTimeout bounds one unary call's first byte; 0 means 10 s. A
	// shorter deadline of the call's context wins.
	CallTimeout time.Duration
	// StallTimeout bounds how long a frame may take once begun; 0 means 60 s.
	StallTimeout time.Duration
}

// Errors a caller branches on.
var (
	// ErrWrongGuest says that the guest at the endpoint could not prove to
	// be the VM that was meant.
	ErrWrongGuest = errors.New("another guest answers there")
	// ErrLinkLost says that the link to the guest died; dial again, and
	// attach to commands where they stand.
	ErrLinkLost = errors.New("the link to the guest is lost")
)

// Client speaks to one guest's agent over one link. It is shared by any number
// of callers; every method may be called concurrently.
type Client struct{}

// Dial connects to the agent at the endpoint, synchronises, says hello and has
// the guest prove that it knows the token. It retries until ctx ends, so that
// a booting guest is simply waited for; ErrWrongGuest ends it at once.
func Dial(ctx context.Context, endpoint hypervisor.Endpoint, token []byte, opts Options) (*Client, error) {
	return nil, errNotBuilt
}

var errNotBuilt = errors.New("not built yet")

// Info is what the guest said of itself at Dial.
func (c *Client) Info() wire.HelloReply { return wire.HelloReply{} }

// Done is closed when the link has died or Close was called.
func (c *Client) Done() <-chan struct{} { return nil }

// Err says why, once Done is closed.
func (c *Client) Err() error { return nil }

// Close ends the link; commands in the guest run on.
func (c *Client) Close() error { return nil }

// Hello asks again who is there; the proof is checked.
func (c *Client) Hello(ctx context.Context) (wire.HelloReply, error) {
	return wire.HelloReply{}, errNotBuilt
}

// Identity gives the guest its identity; its Token is the client's from then on.
func (c *Client) Identity(ctx context.Context, id wire.Identity) (wire.IdentityReply, error) {
	return wire.IdentityReply{}, errNotBuilt
}

// Handover lets the guest go on to its own init.
func (c *Client) Handover(ctx context.Context) error { return errNotBuilt }

// Prepare readies the guest for a snapshot. Give it a context with a limit.
func (c *Client) Prepare(ctx context.Context, req wire.PrepareRequest) (wire.PrepareReply, error) {
	return wire.PrepareReply{}, errNotBuilt
}

// Stats is what the guest says of itself.
func (c *Client) Stats(ctx context.Context) (wire.Stats, error) { return wire.Stats{}, errNotBuilt }

// Clock steps the guest's wall clock.
func (c *Client) Clock(ctx context.Context, req wire.ClockRequest) error { return errNotBuilt }

// Grow grows filesystems after their disks have grown.
func (c *Client) Grow(ctx context.Context, req wire.GrowRequest) error { return errNotBuilt }

// Wait waits for a state of the guest's init; only ctx bounds it.
func (c *Client) Wait(ctx context.Context, req wire.WaitRequest) (wire.WaitReply, error) {
	return wire.WaitReply{}, errNotBuilt
}

// Shutdown starts the guest's orderly stop and returns when it was accepted.
func (c *Client) Shutdown(ctx context.Context, req wire.ShutdownRequest) error { return errNotBuilt }

// Sync writes the guest's dirty pages back.
func (c *Client) Sync(ctx context.Context) error { return errNotBuilt }

// Process is one reader's end of a command in the guest. Send and Recv may be
// used by one goroutine each. Closing it leaves the command running until its
// orphan limit, unless an End was sent.
type Process struct{}

// Send gives the command input, a signal, a size, an ack or an end.
func (p *Process) Send(in wire.ExecInput) error { return errNotBuilt }

// Recv gives the next output; io.EOF after Exit.
func (p *Process) Recv() (wire.ExecOutput, error) { return wire.ExecOutput{}, errNotBuilt }

// Close leaves the command.
func (p *Process) Close() error { return errNotBuilt }

// Exec starts a command; ctx bounds the whole Process.
func (c *Client) Exec(ctx context.Context, req wire.ExecRequest) (*Process, error) {
	return nil, errNotBuilt
}

// Attach goes on with a command at the offsets given; ctx bounds the Process.
func (c *Client) Attach(ctx context.Context, req wire.AttachRequest) (*Process, error) {
	return nil, errNotBuilt
}

// TarIn unpacks a tar stream in the guest.
func (c *Client) TarIn(ctx context.Context, req wire.TarInRequest, r io.Reader) (wire.TarReply, error) {
	return wire.TarReply{}, errNotBuilt
}

// TarOut copies a tar stream out of the guest; its bytes are the guest's and
// must be treated as hostile.
func (c *Client) TarOut(ctx context.Context, req wire.TarOutRequest, w io.Writer) (wire.TarReply, error) {
	return wire.TarReply{}, errNotBuilt
}

// DialGuest connects to an address inside the guest ("tcp", "unix", or
// "agent" "ssh"). ctx bounds the dialling only.
func (c *Client) DialGuest(ctx context.Context, network, address string) (net.Conn, error) {
	return nil, errNotBuilt
}
