package agent

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// Hosted is the System of an agent that runs as a plain process on the host,
// for tests and the hosted driver. It touches nothing of the machine.
type Hosted struct {
	mu    sync.Mutex
	token []byte
	id    wire.Identity
	start time.Time
	// stop is called by Shutdown.
	stop func()
}

// NewHosted makes a Hosted with the token that it proves itself by; stop is
// called once the host asks it to shut down, and may be nil.
func NewHosted(token []byte, stop func()) *Hosted {
	return &Hosted{token: token, start: time.Now(), stop: stop}
}

// Info says that there is no init here.
func (h *Hosted) Info() wire.HelloReply {
	return wire.HelloReply{
		State: "alone", Agent: "hosted", Kernel: "host", Clock: "host",
		UptimeMS: uint64(time.Since(h.start).Milliseconds()), ClockUnix: time.Now().UnixNano(),
	}
}

// Token is the one given, or the newest identity's.
func (h *Hosted) Token() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.token
}

// Identity keeps the identity and changes nothing.
func (h *Hosted) Identity(_ context.Context, id wire.Identity) (wire.IdentityReply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.id = id
	if len(id.Token) > 0 {
		h.token = id.Token
	}
	return wire.IdentityReply{Steps: []wire.Step{{Name: "hosted"}}}, nil
}

// LastIdentity is what Identity was last given.
func (h *Hosted) LastIdentity() wire.Identity {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.id
}

// Handover does nothing: there is no init.
func (h *Hosted) Handover(context.Context) error { return nil }

// Prepare does nothing.
func (h *Hosted) Prepare(context.Context, wire.PrepareRequest) (wire.PrepareReply, error) {
	return wire.PrepareReply{Clock: "host"}, nil
}

// Stats says how long the agent has run.
func (h *Hosted) Stats(context.Context) (wire.Stats, error) {
	return wire.Stats{UptimeMS: uint64(time.Since(h.start).Milliseconds()), Processes: 1}, nil
}

// Clock leaves the host's clock alone.
func (h *Hosted) Clock(context.Context, wire.ClockRequest) error { return nil }

// Grow does nothing.
func (h *Hosted) Grow(context.Context, wire.GrowRequest) error { return nil }

// Wait has nothing to wait for.
func (h *Hosted) Wait(_ context.Context, req wire.WaitRequest) (wire.WaitReply, error) {
	if req.For != "system" {
		return wire.WaitReply{}, errs.New(errs.Invalid, "bad_request", "cannot wait for %q", req.For)
	}
	return wire.WaitReply{State: "alone"}, nil
}

// Shutdown ends the agent, not the host.
func (h *Hosted) Shutdown(context.Context, wire.ShutdownRequest) error {
	if h.stop != nil {
		// After the answer is on its way.
		time.AfterFunc(50*time.Millisecond, h.stop)
	}
	return nil
}

// Sync leaves the host's disks alone.
func (h *Hosted) Sync(context.Context) error { return nil }

// ServeSSH has no ssh server.
func (h *Hosted) ServeSSH(_ context.Context, conn net.Conn) { conn.Close() }
