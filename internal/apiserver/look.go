package apiserver

import (
	"context"
	"errors"
	"io"
	"path"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/vm"
	"github.com/banger-dev/banger/internal/workspace"
)

// unlessGone drops the error of a caller that has seen enough.
func unlessGone(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Logs streams a VM's logs.
func (v *vmService) Logs(ctx context.Context, req *connect.Request[bangerv1.LogsRequest], stream *connect.ServerStream[bangerv1.LogsResponse]) error {
	m := req.Msg
	return unlessGone(ctx, v.s.rooms.VMs.Logs(ctx, vm.LogsRequest{
		Ref: m.GetVm(), Console: m.GetConsole(), Hypervisor: m.GetHypervisor(), Daemon: m.GetDaemon(),
		Follow: m.GetFollow(), Tail: int(m.GetTail()),
	}, func(source string, data []byte) error {
		return stream.Send(&bangerv1.LogsResponse{Source: source, Data: data})
	}))
}

// Stats streams what VMs use.
func (v *vmService) Stats(ctx context.Context, req *connect.Request[bangerv1.StatsRequest], stream *connect.ServerStream[bangerv1.StatsResponse]) error {
	m := req.Msg
	return unlessGone(ctx, v.s.rooms.VMs.Stats(ctx, m.GetVms(), m.GetFollow(), seconds(m.GetInterval()), func(all []vm.Stats) error {
		resp := &bangerv1.StatsResponse{}
		for _, s := range all {
			resp.Stats = append(resp.Stats, toStats(s))
		}
		return stream.Send(resp)
	}))
}

func toStats(s vm.Stats) *bangerv1.VMStats {
	out := &bangerv1.VMStats{
		Vm: s.ID, Name: s.Name, At: timestamppb.New(s.At), CpuPercent: s.CPUPercent, CpuMs: s.CPU.Milliseconds(),
		HostMemory: s.HostMemory, DiskUsed: s.DiskUsed,
	}
	if g := s.Guest; g != nil {
		out.MemoryTotal, out.MemoryAvailable = int64(g.MemTotal), int64(g.MemAvailable)
		out.WorkDiskUsed, out.WorkDiskTotal = int64(g.WorkDiskUsed), int64(g.WorkDiskTotal)
		out.NetRx, out.NetTx = int64(g.NetRX), int64(g.NetTX)
		out.Processes, out.Load1 = g.Processes, g.Load1
	}
	if s.Err != nil {
		out.Error = s.Err.Error()
	}
	return out
}

// SSH gives what an ssh client needs.
func (v *vmService) SSH(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.SSHResponse], error) {
	view, a, err := v.s.rooms.VMs.SSHAccess(ctx, req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.SSHResponse{
		Vm: view.ID, Name: view.Name, User: a.User, KeyPath: a.KeyPath, KnownHosts: a.KnownHosts,
		HostKeyAlias: a.Alias, Options: a.Options,
	}), nil
}

// List gives the templates there are.
func (t *templateService) List(context.Context, *connect.Request[bangerv1.ListTemplatesRequest]) (*connect.Response[bangerv1.ListTemplatesResponse], error) {
	resp := &bangerv1.ListTemplatesResponse{}
	for _, v := range t.s.rooms.VMs.Templates() {
		resp.Templates = append(resp.Templates, toTemplate(v))
	}
	return connect.NewResponse(resp), nil
}

// Delete removes templates that no VM's RAM maps.
func (t *templateService) Delete(_ context.Context, req *connect.Request[bangerv1.DeleteTemplatesRequest]) (*connect.Response[bangerv1.DeleteTemplatesResponse], error) {
	keys, freed, err := t.s.rooms.VMs.DeleteTemplates(req.Msg.GetKeys(), req.Msg.GetAll())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.DeleteTemplatesResponse{Keys: keys, Freed: freed}), nil
}

// Prepare copies a directory of the host into a guest.
func (w *workspaceService) Prepare(ctx context.Context, req *connect.Request[bangerv1.PrepareWorkspaceRequest], stream *opStream) error {
	m := req.Msg
	return withProgress(ctx, stream, func(ctx context.Context, r op.Reporter) (*bangerv1.OpEvent, error) {
		res, err := w.prepare(ctx, m, r)
		if err != nil {
			return nil, err
		}
		return &bangerv1.OpEvent{Event: &bangerv1.OpEvent_Workspace{Workspace: res}}, nil
	})
}

func (w *workspaceService) prepare(ctx context.Context, m *bangerv1.PrepareWorkspaceRequest, r op.Reporter) (_ *bangerv1.WorkspaceResult, err error) {
	if !path.IsAbs(m.GetPath()) {
		return nil, errs.New(errs.Invalid, "workspace_path_relative", "%q is not absolute, and the daemon does not know where you are", m.GetPath()).
			WithHint("give the whole path")
	}
	to := m.GetGuestPath()
	if to == "" {
		to = workspace.GuestPath
	}
	if !path.IsAbs(to) || path.Clean(to) == "/" {
		return nil, errs.New(errs.Invalid, "guest_path_invalid", "guest path %q must be absolute and not /", to).WithHint("--guest-path %s", workspace.GuestPath)
	}
	to = path.Clean(to)
	tree, err := workspace.Inspect(ctx, m.GetPath())
	if err != nil {
		return nil, err
	}
	res := &bangerv1.WorkspaceResult{
		GuestPath: path.Join(to, tree.Sub), Files: uint64(len(tree.Paths)), Bytes: uint64(tree.Bytes),
		Head: tree.Head, Branch: tree.Branch, Git: tree.Git, Warnings: tree.Warnings,
	}
	if m.GetDryRun() {
		res.Paths = tree.Paths
		return res, nil
	}
	stage := r.Stage("workspace", "copying "+tree.Root)
	defer func() { stage.End(err, "copied to "+to) }()
	pr, pw := io.Pipe()
	written := make(chan workspace.Written, 1)
	go func() {
		n, err := tree.WriteTar(ctx, pw, func(done, total int64) { stage.Progress(done, total, "bytes", "") })
		pw.CloseWithError(err)
		written <- n
	}()
	_, err = w.s.rooms.VMs.CopyIn(ctx, m.GetVm(), wire.TarInRequest{Dir: to, MakeDir: true}, pr)
	pr.CloseWithError(io.ErrClosedPipe) // lets the writer go where the guest refused
	n := <-written
	if err != nil {
		return nil, err
	}
	res.Files, res.Bytes = n.Files, n.Bytes
	return res, w.s.rooms.VMs.SetWorkspace(ctx, m.GetVm(), res.GetGuestPath())
}

func toTemplate(v vm.TemplateView) *bangerv1.Template {
	return &bangerv1.Template{
		Key: v.Key, Level: v.Level, Image: v.Image, Kernel: v.Kernel, Cpus: uint32(v.CPUs), Memory: v.Memory,
		Size: v.Size, Created: stamp(v.Created), Used: stamp(v.Used), Clones: uint32(v.Clones),
	}
}
