// Package guest is the daemon's port to the agent in a guest: a Client speaks
// guest/wire over one link (guest/link) carrying many streams (guest/mux).
// It knows endpoints as plain data and nothing of hypervisors' processes;
// everything that comes back from a guest is bounded, timed and checked here.
package guest

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// Options tune a Client; the zero value is right for the daemon.
type Options struct {
	// CallTimeout bounds one unary call's first byte; 0 means 10 s. A
	// shorter deadline of the call's context wins. Prepare, Wait, Identity
	// and Sync are bounded by their context alone.
	CallTimeout time.Duration
	// StallTimeout bounds how long a frame may take once begun; 0 means 60 s.
	StallTimeout time.Duration
}

const (
	defaultCall  = 10 * time.Second
	defaultStall = time.Minute
	nonceSize    = 32
)

// Errors a caller branches on.
var (
	// ErrWrongGuest says that the guest at the endpoint could not prove to
	// be the VM that was meant.
	ErrWrongGuest = errors.New("another guest answers there")
	// ErrLinkLost says that the link to the guest died; dial again, and
	// attach to commands where they stand.
	ErrLinkLost = errors.New("the link to the guest is lost")
	// ErrMisbehaved says that the guest's agent broke the protocol.
	ErrMisbehaved = errors.New("the guest's agent does not keep to the protocol")
)

// Client speaks to one guest's agent over one link. It is shared by any number
// of callers; every method may be called concurrently.
type Client struct {
	session *mux.Session
	opts    Options

	mu    sync.Mutex
	token []byte
	info  wire.HelloReply
}

// Dial connects to the agent at the endpoint, synchronises, says hello and has
// the guest prove that it knows the token. It retries until ctx ends, so that
// a booting guest is simply waited for; ErrWrongGuest ends it at once.
func Dial(ctx context.Context, endpoint hypervisor.Endpoint, token []byte, opts Options) (*Client, error) {
	if opts.CallTimeout == 0 {
		opts.CallTimeout = defaultCall
	}
	if opts.StallTimeout == 0 {
		opts.StallTimeout = defaultStall
	}
	port := endpoint.Port
	if port == 0 {
		port = wire.VsockPort
	}
	conn, err := link.Dial(ctx, endpoint.Kind, endpoint.Path, port, opts.StallTimeout)
	if err != nil {
		return nil, dialError(ctx, err)
	}
	c := &Client{session: mux.Host(conn), opts: opts, token: token}
	if _, err := c.Hello(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func dialError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, link.ErrDesync), errors.Is(err, link.ErrGreeting):
		return errs.Wrap(fmt.Errorf("%w: %w", ErrMisbehaved, err), errs.Unavailable, "guest_misbehaved", "connect to the guest's agent")
	case errors.Is(ctx.Err(), context.Canceled):
		return errs.Wrap(ctx.Err(), errs.Cancelled, "cancelled", "connect to the guest's agent")
	case ctx.Err() != nil:
		return errs.Wrap(err, errs.Timeout, "guest_no_answer", "the guest's agent did not answer in time")
	}
	return errs.Wrap(err, errs.Unavailable, "guest_unreachable", "connect to the guest's agent")
}

// Info is what the guest said of itself when it was last greeted.
func (c *Client) Info() wire.HelloReply {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// Done is closed when the link has died or Close was called.
func (c *Client) Done() <-chan struct{} { return c.session.Done() }

// Err says why, once Done is closed.
func (c *Client) Err() error {
	if err := c.session.Err(); err != nil {
		return c.explain(err)
	}
	return nil
}

// Close ends the link and waits for its goroutines; commands in the guest run on.
func (c *Client) Close() error { return c.session.Close() }

// explain gives an error of the link or of a stream its kind and code.
func (c *Client) explain(err error) error {
	if dead := c.session.Err(); dead != nil {
		err = dead
	}
	var known *errs.Error
	var reset *mux.ResetError
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, mux.ErrTooMany):
		return errs.Wrap(err, errs.Exhausted, "guest_streams", "too much goes on in this guest at once")
	case errors.Is(err, mux.ErrProtocol), errors.Is(err, wire.ErrMalformed), errors.Is(err, wire.ErrTooLarge),
		errors.Is(err, link.ErrDesync), errors.Is(err, ErrMisbehaved):
		return errs.Wrap(fmt.Errorf("%w: %w", ErrMisbehaved, err), errs.Unavailable, "guest_misbehaved", "talk to the guest's agent")
	case errors.As(err, &reset):
		return errs.Wrap(err, errs.Unavailable, "guest_refused", "talk to the guest's agent")
	}
	return errs.Wrap(fmt.Errorf("%w: %w", ErrLinkLost, err), errs.Unavailable, "guest_link_lost", "talk to the guest's agent")
}

// Hello asks again who is there; the proof is checked.
func (c *Client) Hello(ctx context.Context) (wire.HelloReply, error) {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	var reply wire.HelloReply
	req := wire.HelloRequest{Version: wire.Version, MinVersion: wire.MinVersion, Nonce: nonce}
	if err := c.call(ctx, wire.MethodHello, &req, &reply, c.opts.CallTimeout); err != nil {
		return wire.HelloReply{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !hmac.Equal(reply.Proof, wire.Proof(c.token, nonce)) {
		return wire.HelloReply{}, errs.Wrap(ErrWrongGuest, errs.Unavailable, "wrong_guest", "the guest could not prove who it is")
	}
	if reply.Version < wire.MinVersion || reply.Version > wire.Version {
		return wire.HelloReply{}, errs.New(errs.Unsupported, "agent_version",
			"the guest's agent speaks protocol %d, this banger %d to %d", reply.Version, wire.MinVersion, wire.Version)
	}
	if err := checkHello(&reply); err != nil {
		return wire.HelloReply{}, c.explain(err)
	}
	c.info = reply
	return reply, nil
}

// Identity gives the guest its identity; its Token is the client's from then
// on. After an error either token may hold: try both at the next Dial.
func (c *Client) Identity(ctx context.Context, id wire.Identity) (wire.IdentityReply, error) {
	var reply wire.IdentityReply
	if err := c.call(ctx, wire.MethodIdentity, &id, &reply, 0); err != nil {
		return wire.IdentityReply{}, err
	}
	if len(id.Token) > 0 {
		c.mu.Lock()
		c.token = id.Token
		c.mu.Unlock()
	}
	cleanIdentity(&reply)
	return reply, nil
}

// Handover lets the guest go on to its own init.
func (c *Client) Handover(ctx context.Context) error {
	return c.call(ctx, wire.MethodHandover, &wire.HandoverRequest{}, &wire.Empty{}, c.opts.CallTimeout)
}

// Prepare readies the guest for a snapshot. Only ctx bounds it.
func (c *Client) Prepare(ctx context.Context, req wire.PrepareRequest) (wire.PrepareReply, error) {
	var reply wire.PrepareReply
	err := c.call(ctx, wire.MethodPrepare, &req, &reply, 0)
	reply.Clock = clean(reply.Clock, maxWord)
	return reply, err
}

// Stats is what the guest says of itself.
func (c *Client) Stats(ctx context.Context) (wire.Stats, error) {
	var reply wire.Stats
	err := c.call(ctx, wire.MethodStats, &wire.Empty{}, &reply, c.opts.CallTimeout)
	return reply, err
}

// Clock steps the guest's wall clock.
func (c *Client) Clock(ctx context.Context, req wire.ClockRequest) error {
	return c.call(ctx, wire.MethodClock, &req, &wire.Empty{}, c.opts.CallTimeout)
}

// Grow grows filesystems after their disks have grown. Only ctx bounds it.
func (c *Client) Grow(ctx context.Context, req wire.GrowRequest) error {
	return c.call(ctx, wire.MethodGrow, &req, &wire.Empty{}, 0)
}

// Wait waits for a state of the guest's init; only ctx bounds it.
func (c *Client) Wait(ctx context.Context, req wire.WaitRequest) (wire.WaitReply, error) {
	var reply wire.WaitReply
	err := c.call(ctx, wire.MethodWait, &req, &reply, 0)
	cleanWait(&reply)
	return reply, err
}

// Shutdown starts the guest's orderly stop and returns when it was accepted.
func (c *Client) Shutdown(ctx context.Context, req wire.ShutdownRequest) error {
	return c.call(ctx, wire.MethodShutdown, &req, &wire.Empty{}, c.opts.CallTimeout)
}

// Sync writes the guest's dirty pages back. Only ctx bounds it.
func (c *Client) Sync(ctx context.Context) error {
	return c.call(ctx, wire.MethodSync, &wire.Empty{}, &wire.Empty{}, 0)
}
