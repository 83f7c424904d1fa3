package apiserver

import (
	"context"
	"math"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/api/banger/v1/bangerv1connect"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/vm"
)

type vmService struct {
	bangerv1connect.UnimplementedVMServiceHandler
	s *Server
}

type opStream = connect.ServerStream[bangerv1.OpEvent]

// vmOp runs an operation on a VM with its progress.
func vmOp(ctx context.Context, stream *opStream, f func(context.Context, op.Reporter) (vm.View, error)) error {
	return withProgress(ctx, stream, func(ctx context.Context, r op.Reporter) (*bangerv1.OpEvent, error) {
		v, err := f(ctx, r)
		if err != nil {
			return nil, err
		}
		return &bangerv1.OpEvent{Event: &bangerv1.OpEvent_Vm{Vm: toVM(v)}}, nil
	})
}

func seconds(d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.AsDuration()
}

// Create makes a VM.
func (v *vmService) Create(ctx context.Context, req *connect.Request[bangerv1.CreateRequest], stream *opStream) error {
	m := req.Msg
	return vmOp(ctx, stream, func(ctx context.Context, r op.Reporter) (vm.View, error) {
		return v.s.rooms.VMs.Create(ctx, vm.CreateRequest{
			Name: m.GetName(), Spec: fromSpec(m.GetSpec()), NoStart: m.GetNoStart(), Cold: m.GetCold(), Wait: m.GetWait(),
			Ephemeral: m.GetEphemeral(), Expires: seconds(m.GetExpires()), Labels: m.GetLabels(),
			WaitTimeout: seconds(m.GetWaitTimeout()), ValidateOnly: m.GetValidateOnly(),
		}, r)
	})
}

// Start boots a stopped VM.
func (v *vmService) Start(ctx context.Context, req *connect.Request[bangerv1.StartRequest], stream *opStream) error {
	m := req.Msg
	return vmOp(ctx, stream, func(ctx context.Context, r op.Reporter) (vm.View, error) {
		return v.s.rooms.VMs.Start(ctx, vm.StartRequest{Ref: m.GetVm(), Wait: m.GetWait(), WaitTimeout: seconds(m.GetWaitTimeout())}, r)
	})
}

// Stop stops a VM.
func (v *vmService) Stop(ctx context.Context, req *connect.Request[bangerv1.StopRequest], stream *opStream) error {
	m := req.Msg
	return vmOp(ctx, stream, func(ctx context.Context, r op.Reporter) (vm.View, error) {
		return v.s.rooms.VMs.Stop(ctx, m.GetVm(), seconds(m.GetTimeout()), m.GetForce(), r)
	})
}

// Restart stops and starts a VM.
func (v *vmService) Restart(ctx context.Context, req *connect.Request[bangerv1.RestartRequest], stream *opStream) error {
	m := req.Msg
	return vmOp(ctx, stream, func(ctx context.Context, r op.Reporter) (vm.View, error) {
		return v.s.rooms.VMs.Restart(ctx, m.GetVm(), seconds(m.GetTimeout()), m.GetWait(), seconds(m.GetWaitTimeout()), r)
	})
}

// Wait waits for a state of the guest.
func (v *vmService) Wait(ctx context.Context, req *connect.Request[bangerv1.WaitRequest], stream *opStream) error {
	m := req.Msg
	return vmOp(ctx, stream, func(ctx context.Context, r op.Reporter) (vm.View, error) {
		return v.s.rooms.VMs.Wait(ctx, m.GetVm(), m.GetFor(), seconds(m.GetTimeout()), r)
	})
}

// Kill ends a VM's hypervisor.
func (v *vmService) Kill(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.VM], error) {
	return answerVM(v.s.rooms.VMs.Kill(ctx, req.Msg.GetVm()))
}

func answerVM(view vm.View, err error) (*connect.Response[bangerv1.VM], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(toVM(view)), nil
}

// Delete throws a VM away.
func (v *vmService) Delete(ctx context.Context, req *connect.Request[bangerv1.DeleteRequest]) (*connect.Response[bangerv1.DeleteResponse], error) {
	view, err := v.s.rooms.VMs.Delete(ctx, req.Msg.GetVm(), req.Msg.GetForce())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.DeleteResponse{Vm: toVM(view)}), nil
}

// List gives all VMs, or without All those that are not at rest.
func (v *vmService) List(_ context.Context, req *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ListResponse], error) {
	views := v.s.rooms.VMs.List(req.Msg.GetLabels())
	if !req.Msg.GetAll() {
		kept := views[:0]
		for _, view := range views {
			if view.State != vm.StateStopped {
				kept = append(kept, view)
			}
		}
		views = kept
	}
	return connect.NewResponse(&bangerv1.ListResponse{Vms: toVMs(views)}), nil
}

// Get gives one VM.
func (v *vmService) Get(_ context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.VM], error) {
	return answerVM(v.s.rooms.VMs.Get(req.Msg.GetVm()))
}

// Set changes a VM's spec.
func (v *vmService) Set(ctx context.Context, req *connect.Request[bangerv1.SetRequest]) (*connect.Response[bangerv1.SetResponse], error) {
	m := req.Msg
	set := vm.SetRequest{Ref: m.GetVm(), Memory: m.Memory, Disk: m.Disk, Labels: m.GetLabels(), RemoveLabels: m.GetRemoveLabels()}
	if m.Cpus != nil {
		n := int(min(m.GetCpus(), math.MaxInt32))
		set.CPUs = &n
	}
	if m.Expires != nil {
		d := m.GetExpires().AsDuration()
		set.Expires = &d
	}
	view, later, err := v.s.rooms.VMs.Set(ctx, set)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.SetResponse{Vm: toVM(view), NeedsRestart: later}), nil
}

// Rename gives a VM another name.
func (v *vmService) Rename(ctx context.Context, req *connect.Request[bangerv1.RenameRequest]) (*connect.Response[bangerv1.VM], error) {
	return answerVM(v.s.rooms.VMs.Rename(ctx, req.Msg.GetVm(), req.Msg.GetName()))
}

// Prune deletes stopped VMs.
func (v *vmService) Prune(ctx context.Context, req *connect.Request[bangerv1.PruneRequest]) (*connect.Response[bangerv1.PruneResponse], error) {
	views, freed, err := v.s.rooms.VMs.Prune(ctx, req.Msg.GetDryRun())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.PruneResponse{Vms: toVMs(views), Freed: freed}), nil
}
