package apiserver

import (
	"context"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/op"
)

// backlog is how many events wait for a slow caller before progress is
// dropped; a stage's beginning and end never are.
const backlog = 256

// withProgress runs f while its events are sent to the caller, then sends the
// last message. A caller that went away ends f's context and loses nothing
// else: f is waited for.
func withProgress(ctx context.Context, stream *connect.ServerStream[bangerv1.OpEvent], f func(context.Context, op.Reporter) (*bangerv1.OpEvent, error)) error {
	events := make(chan op.Event, backlog)
	sent := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(sent)
		broken := false
		for e := range events {
			if broken {
				continue
			}
			if err := stream.Send(toProgress(e)); err != nil {
				broken = true
				close(gone)
			}
		}
	}()
	last, err := f(ctx, func(e op.Event) {
		if e.Status == op.Progress {
			select {
			case events <- e:
			default:
			}
			return
		}
		select {
		case events <- e:
		case <-gone:
		}
	})
	close(events)
	<-sent
	if err != nil {
		return err
	}
	if last == nil {
		return nil
	}
	return stream.Send(last)
}
