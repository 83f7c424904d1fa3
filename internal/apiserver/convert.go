package apiserver

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/vm"
)

var states = map[vm.State]bangerv1.State{
	vm.StateCreating: bangerv1.State_STATE_CREATING, vm.StateStopped: bangerv1.State_STATE_STOPPED,
	vm.StateStarting: bangerv1.State_STATE_STARTING, vm.StateRunning: bangerv1.State_STATE_RUNNING,
	vm.StatePaused: bangerv1.State_STATE_PAUSED, vm.StateSuspended: bangerv1.State_STATE_SUSPENDED,
	vm.StateStopping: bangerv1.State_STATE_STOPPING, vm.StateBroken: bangerv1.State_STATE_BROKEN,
	vm.StateDeleting: bangerv1.State_STATE_DELETING,
}

func toVM(v vm.View) *bangerv1.VM {
	out := &bangerv1.VM{
		Id: v.ID, Name: v.Name, State: states[v.State], Reason: v.Reason, Spec: toSpec(v.Spec),
		ImageDigest: v.Image.Digest, KernelDigest: v.Kernel.Digest,
		Created: stamp(v.Created), Started: stamp(v.Started), Expires: stamp(v.Expires),
		Hypervisor: v.Hypervisor, Accelerator: v.Accelerator, StartKind: v.StartKind, Pid: int64(v.PID),
		GuestState: v.GuestState, Workspace: v.Workspace, DiskUsed: v.DiskUsed, MemoryUsed: v.MemUsed,
		Dir: v.Dir, Operation: v.Operation, Ephemeral: v.Ephemeral, Labels: v.Labels,
	}
	if v.Link != nil {
		out.Address = v.Link.Guest.IPv4
	}
	return out
}

func toVMs(views []vm.View) []*bangerv1.VM {
	out := make([]*bangerv1.VM, len(views))
	for i, v := range views {
		out[i] = toVM(v)
	}
	return out
}

func toSpec(s vm.Spec) *bangerv1.Spec {
	out := &bangerv1.Spec{
		Image: s.Image, Kernel: s.Kernel, Cpus: uint32(s.CPUs), Memory: s.Memory, Disk: s.Disk,
		Network: s.Network, BootArgs: s.BootArgs, Origin: s.Origin,
	}
	for _, e := range s.Env {
		out.Env = append(out.Env, &bangerv1.EnvVar{Name: e.Name, Value: e.Value})
	}
	return out
}

// fromSpec keeps absurd values absurd, for the room to refuse with words.
func fromSpec(s *bangerv1.Spec) vm.Spec {
	out := vm.Spec{
		Image: s.GetImage(), Kernel: s.GetKernel(), CPUs: int(s.GetCpus()), Memory: s.GetMemory(),
		Disk: s.GetDisk(), Network: s.GetNetwork(), BootArgs: s.GetBootArgs(),
	}
	for _, e := range s.GetEnv() {
		out.Env = append(out.Env, vm.EnvVar{Name: e.GetName(), Value: e.GetValue()})
	}
	return out
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// stampText reads a manifest's time; a bad one is none.
func stampText(s string) *timestamppb.Timestamp {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return nil
	}
	return timestamppb.New(t)
}

func toProgress(e op.Event) *bangerv1.OpEvent {
	return &bangerv1.OpEvent{Event: &bangerv1.OpEvent_Progress{Progress: &bangerv1.Progress{
		Stage: e.Stage, Status: string(e.Status), Message: e.Message, Done: e.Done, Total: e.Total,
		Unit: e.Unit, ElapsedMs: e.Elapsed.Milliseconds(),
	}}}
}

func toImage(i image.Image, packages bool) *bangerv1.Image {
	m := i.Manifest
	out := &bangerv1.Image{
		Name: m.Name, Names: i.Names, Digest: m.Digest, Size: m.Size, Used: m.Used, Os: m.OS, Init: m.Init,
		Kernel: m.Kernel, Source: m.Source, Created: stampText(m.Created), Notes: m.Notes, Path: i.Rootfs, Local: true,
	}
	if packages {
		for _, p := range m.Packages {
			out.Packages = append(out.Packages, &bangerv1.ImagePackage{Name: p.Name, Version: p.Version})
		}
	}
	return out
}

func toKernel(k kernel.Kernel) *bangerv1.Kernel {
	m := k.Manifest
	return &bangerv1.Kernel{
		Name: m.Name, Release: m.Release, Digest: m.Digest, Size: m.Size, Source: m.Source,
		Created: stampText(m.Created), Path: k.VMLinux, Local: true,
	}
}
