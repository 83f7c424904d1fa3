// Package agent is the guest's side of guest/wire: it answers the host's
// streams, runs commands that outlive their readers, moves files as tar
// streams and dials inside the guest. It is not the guest's boot chain nor
// its identity: all that touches the machine as a whole stands behind System
// (agent/system implements it for a real guest, Hosted for a plain process).
package agent

import (
	"context"
	"net"

	"github.com/banger-dev/banger/internal/guest/wire"
)

// System is the machine that the agent speaks for. Methods may be called
// concurrently; a context is cancelled when the host gives the call up or the
// link dies. Errors carry a kind of errs, which the host gets to see.
type System interface {
	// Info fills a HelloReply but for Proof, which the server adds.
	Info() wire.HelloReply
	// Token is the VM's token, by which the guest proves itself. It is
	// read anew for every hello: Identity replaces it.
	Token() []byte
	// Identity makes the guest the VM named; repeating it is allowed.
	Identity(ctx context.Context, id wire.Identity) (wire.IdentityReply, error)
	// Handover lets PID 1 become the image's init. It returns once that
	// is under way; where there is no init it does nothing.
	Handover(ctx context.Context) error
	// Prepare quiets the guest for a snapshot.
	Prepare(ctx context.Context, req wire.PrepareRequest) (wire.PrepareReply, error)
	Stats(ctx context.Context) (wire.Stats, error)
	Clock(ctx context.Context, req wire.ClockRequest) error
	Grow(ctx context.Context, req wire.GrowRequest) error
	Wait(ctx context.Context, req wire.WaitRequest) (wire.WaitReply, error)
	// Shutdown starts the orderly stop and returns at once, so that the
	// answer still reaches the host.
	Shutdown(ctx context.Context, req wire.ShutdownRequest) error
	Sync(ctx context.Context) error
	// ServeSSH speaks the ssh server's side on conn and closes it.
	ServeSSH(ctx context.Context, conn net.Conn)
}
