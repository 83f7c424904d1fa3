package cli

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
)

// The views are what --json prints. A key once published stays; the schema is
// made from these structs and their doc tags.

// vmView is a VM.
type vmView struct {
	ID          string            `json:"id" doc:"stable id"`
	Name        string            `json:"name" doc:"DNS label, unique"`
	State       string            `json:"state" doc:"creating, stopped, starting, running, paused, suspended, stopping, broken or deleting"`
	Reason      string            `json:"reason,omitempty" doc:"why it is in that state"`
	Operation   string            `json:"operation,omitempty" doc:"what is being done to it now"`
	Image       string            `json:"image" doc:"name of the image"`
	ImageDigest string            `json:"image_digest,omitempty" doc:"address of the image"`
	Kernel      string            `json:"kernel,omitempty" doc:"name of the kernel"`
	KernelDig   string            `json:"kernel_digest,omitempty" doc:"address of the kernel"`
	CPUs        uint32            `json:"cpus" doc:"virtual CPUs"`
	Memory      int64             `json:"memory" doc:"bytes of RAM"`
	Disk        int64             `json:"disk" doc:"bytes of the work disk"`
	Network     string            `json:"network,omitempty" doc:"user or none"`
	BootArgs    []string          `json:"boot_args,omitempty" doc:"added to the kernel's command line"`
	Origin      map[string]string `json:"origin,omitempty" doc:"where each size came from: host, config or flag"`
	MemoryUsed  int64             `json:"memory_used" doc:"bytes of the host's memory that are this VM's own"`
	DiskUsed    int64             `json:"disk_used" doc:"bytes of the host's disk that are this VM's own"`
	Created     string            `json:"created,omitempty" doc:"RFC 3339, UTC"`
	Started     string            `json:"started,omitempty" doc:"RFC 3339, UTC"`
	Expires     string            `json:"expires,omitempty" doc:"when it is deleted; RFC 3339, UTC"`
	Ephemeral   bool              `json:"ephemeral" doc:"deleted when its command ends"`
	Hypervisor  string            `json:"hypervisor,omitempty" doc:"qemu, firecracker"`
	Accelerator string            `json:"accelerator,omitempty" doc:"kvm or tcg"`
	StartKind   string            `json:"start_kind,omitempty" doc:"cold, or the template it was cloned from"`
	PID         int64             `json:"pid,omitempty" doc:"the hypervisor's process"`
	GuestState  string            `json:"guest_state,omitempty" doc:"early, init or alone"`
	Workspace   string            `json:"workspace,omitempty" doc:"path of the workspace in the guest"`
	Address     string            `json:"address,omitempty" doc:"address in the VM's network"`
	Dir         string            `json:"dir,omitempty" doc:"the VM's directory on the host"`
	Labels      map[string]string `json:"labels" doc:"the user's own"`
}

func viewVM(v *bangerv1.VM) vmView {
	s := v.GetSpec()
	labels := v.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	return vmView{
		ID: v.GetId(), Name: v.GetName(), State: stateName(v.GetState()), Reason: v.GetReason(), Operation: v.GetOperation(),
		Image: s.GetImage(), ImageDigest: v.GetImageDigest(), Kernel: s.GetKernel(), KernelDig: v.GetKernelDigest(),
		CPUs: s.GetCpus(), Memory: s.GetMemory(), Disk: s.GetDisk(), Network: s.GetNetwork(), BootArgs: s.GetBootArgs(), Origin: s.GetOrigin(),
		MemoryUsed: v.GetMemoryUsed(), DiskUsed: v.GetDiskUsed(),
		Created: stamp(v.GetCreated()), Started: stamp(v.GetStarted()), Expires: stamp(v.GetExpires()), Ephemeral: v.GetEphemeral(),
		Hypervisor: v.GetHypervisor(), Accelerator: v.GetAccelerator(), StartKind: v.GetStartKind(), PID: v.GetPid(),
		GuestState: v.GetGuestState(), Workspace: v.GetWorkspace(), Address: v.GetAddress(), Dir: v.GetDir(), Labels: labels,
	}
}

func stateName(s bangerv1.State) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STATE_"))
}

// stamp writes a time, "" where there is none.
func stamp(t *timestamppb.Timestamp) string {
	if t == nil || !t.IsValid() || (t.GetSeconds() == 0 && t.GetNanos() == 0) {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339Nano)
}

// since is how long ago t was; ok is false where there is no t.
func since(t *timestamppb.Timestamp) (d time.Duration, ok bool) {
	if stamp(t) == "" {
		return 0, false
	}
	return time.Since(t.AsTime()), true
}
