package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
)

// eventsBackoff is how long a follower waits before it asks a lost daemon
// again.
const eventsBackoff = 200 * time.Millisecond

// followEvents shows events; a follower survives the daemon's restart and goes
// on behind the last event it has shown.
func followEvents(ctx context.Context, a *app, c *apiclient.Client, o eventsOptions) error {
	for {
		err := streamEvents(ctx, a, c, &o)
		if !o.follow || ctx.Err() != nil || !apiclient.Lost(err) {
			return ended(ctx, o.follow, err)
		}
		wait := time.NewTimer(eventsBackoff)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return ended(ctx, true, ctx.Err())
		}
		if _, err := c.Reconnect(ctx); err != nil {
			return ended(ctx, true, err)
		}
	}
}

// streamEvents shows one stream of events and keeps the place in o.
func streamEvents(ctx context.Context, a *app, c *apiclient.Client, o *eventsOptions) error {
	stream, err := c.System.Events(ctx, connect.NewRequest(&bangerv1.EventsRequest{After: o.after, Follow: o.follow, FromNow: o.newest}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		e := stream.Msg()
		if e.GetCursor() != 0 {
			o.after, o.newest = e.GetCursor(), false
		}
		if err := showEvent(a, e); err != nil {
			return err
		}
	}
	return stream.Err()
}

func showEvent(a *app, e *bangerv1.Event) error {
	if a.ui.JSON {
		return a.ui.JSONLine(eventView{Cursor: e.GetCursor(), At: stamp(e.GetAt()), Kind: e.GetKind(), VM: e.GetVm(), Name: e.GetName(), Message: e.GetMessage(), Data: e.GetData()})
	}
	at := e.GetAt().AsTime().Local().Format("2006-01-02 15:04:05")
	name := e.GetName()
	if name == "" {
		name = "-"
	}
	return a.ui.Print("%d  %s  %-16s %-16s %s", e.GetCursor(), at, e.GetKind(), name, e.GetMessage())
}
