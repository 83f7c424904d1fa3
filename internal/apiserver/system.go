package apiserver

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/api/banger/v1/bangerv1connect"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/event"
)

type systemService struct {
	bangerv1connect.UnimplementedSystemServiceHandler
	s *Server
}

// Info says which daemon this is.
func (y *systemService) Info(ctx context.Context, _ *connect.Request[bangerv1.InfoRequest]) (*connect.Response[bangerv1.InfoResponse], error) {
	i, err := y.s.rooms.System.Info(ctx)
	if err != nil {
		return nil, err
	}
	b := buildinfo.Get()
	return connect.NewResponse(&bangerv1.InfoResponse{
		Version: b.Version, Commit: b.Commit, Api: b.API, Pid: int64(i.PID), Started: stamp(i.Started),
		StateDir: i.StateDir, DataDir: i.DataDir, ConfigPath: i.Config, LogPath: i.Log,
		VmsRunning: uint32(i.Running), ExecPath: i.Exec,
	}), nil
}

// Doctor looks at the host.
func (y *systemService) Doctor(ctx context.Context, _ *connect.Request[bangerv1.DoctorRequest]) (*connect.Response[bangerv1.DoctorResponse], error) {
	checks, err := y.s.rooms.System.Doctor(ctx)
	if err != nil {
		return nil, err
	}
	resp := &bangerv1.DoctorResponse{}
	for _, c := range checks {
		resp.Checks = append(resp.Checks, &bangerv1.Check{Name: c.Name, Status: c.Status, Message: c.Message, Fix: c.Fix, Why: c.Why})
	}
	return connect.NewResponse(resp), nil
}

// Events streams what happened.
func (y *systemService) Events(ctx context.Context, req *connect.Request[bangerv1.EventsRequest], stream *connect.ServerStream[bangerv1.Event]) error {
	after := req.Msg.GetAfter()
	if req.Msg.GetFromNow() {
		last, err := y.s.events.Last(ctx)
		if err != nil {
			return err
		}
		after = last
	}
	err := y.s.events.Read(ctx, after, req.Msg.GetFollow(), func(e event.Event) error {
		return stream.Send(&bangerv1.Event{
			Cursor: e.Cursor, At: timestamppb.New(e.At), Kind: e.Kind, Vm: e.VM, Name: e.Name, Message: e.Message, Data: e.Data,
		})
	})
	if errors.Is(err, context.Canceled) {
		return nil // the caller has seen enough, or the daemon ends
	}
	return err
}

// Shutdown ends the daemon.
func (y *systemService) Shutdown(_ context.Context, req *connect.Request[bangerv1.ShutdownRequest]) (*connect.Response[bangerv1.ShutdownResponse], error) {
	y.s.rooms.System.Shutdown(req.Msg.GetStopVms())
	return connect.NewResponse(&bangerv1.ShutdownResponse{}), nil
}

// Config shows every setting.
func (y *systemService) Config(context.Context, *connect.Request[bangerv1.ConfigRequest]) (*connect.Response[bangerv1.ConfigResponse], error) {
	c := y.s.rooms.System.Config()
	resp := &bangerv1.ConfigResponse{Path: c.Path}
	for _, v := range c.Values() {
		resp.Values = append(resp.Values, &bangerv1.ConfigValue{Key: v.Key, Value: v.Value, Origin: v.Origin, Doc: v.Doc})
	}
	return connect.NewResponse(resp), nil
}

// GC finds what no VM owns.
func (y *systemService) GC(ctx context.Context, req *connect.Request[bangerv1.GCRequest]) (*connect.Response[bangerv1.GCResponse], error) {
	found, removed, err := y.s.rooms.VMs.GC(ctx, req.Msg.GetDryRun())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.GCResponse{Found: found, Removed: removed}), nil
}
