// Package vm is what banger is about: the record of a VM, its state computed
// from facts, the one list of steps that makes and unmakes it, templates, and
// the service that runs them. It meets hypervisors, networks, disks, images
// and guests only through the ports in ports.go and the contracts beneath
// them; it knows nothing of the API, of SQLite or of any concrete driver.
package vm

import (
	"context"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/shim"
)

// Intent is what banger means a VM to be.
type Intent string

// The intents.
const (
	Running Intent = "running"
	Stopped Intent = "stopped"
	Gone    Intent = "gone"
)

// Record is everything stored of one VM: intent, identities and what was
// asked. State is never stored; StateOf computes it. Secrets are not in it:
// they lie in files of the VM's directory.
type Record struct {
	ID      string            `json:"id"`
	Name    string            `json:"name"`
	Intent  Intent            `json:"intent"`
	Created time.Time         `json:"created"`
	Spec    Spec              `json:"spec"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Expires is when the VM is stopped for good; zero is never.
	Expires   time.Time `json:"expires,omitzero"`
	Ephemeral bool      `json:"ephemeral,omitempty"`

	// Doing is the verb in progress, written before it acts; "" at rest.
	Doing string `json:"doing,omitempty"`
	// Step is the last step of the table whose up was begun and not undone.
	Step string `json:"step,omitempty"`

	Image  ImageRef  `json:"image"`
	Kernel KernelRef `json:"kernel"`
	// UID is the user of the VM's hypervisor where the daemon is root, or 0.
	UID uint32 `json:"uid,omitempty"`

	// What the running VM consists of; nil when it does not run.
	Machine *hypervisor.Ref `json:"machine,omitempty"`
	Shim    *shim.Ref       `json:"shim,omitempty"`
	Link    *network.Link   `json:"link,omitempty"`
	// HostBoot is the host's boot id when it was started.
	HostBoot string    `json:"host_boot,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	// StartKind is "cold" or "template:agent".
	StartKind   string `json:"start_kind,omitempty"`
	Template    string `json:"template,omitempty"` // key, while its RAM is mapped
	Hypervisor  string `json:"hypervisor,omitempty"`
	Accelerator string `json:"accelerator,omitempty"`
	GuestState  string `json:"guest_state,omitempty"`
	// MachineID and GuestBoot are the identity given to the guest.
	MachineID string `json:"machine_id,omitempty"`
	GuestBoot string `json:"guest_boot,omitempty"`
	// Grown says that the disks have grown and the guest has yet to follow.
	Grown bool `json:"grown,omitempty"`
	// Workspace is the guest path of the prepared workspace, or "".
	Workspace string `json:"workspace,omitempty"`

	// Reason says, in one line, why the VM is in its state.
	Reason string `json:"reason,omitempty"`
	// Failed is how the last operation failed, or nil.
	Failed *Failure `json:"failed,omitempty"`
}

// Failure is a stored error.
type Failure struct {
	Kind    errs.Kind `json:"kind"`
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
}

// FailureOf is err as it is stored; nil for nil.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	return &Failure{Kind: errs.KindOf(err), Code: errs.CodeOf(err), Message: err.Error(), Hint: errs.HintOf(err)}
}

// Spec is what a VM is made of, every value resolved.
type Spec struct {
	Image    string            `json:"image"`
	Kernel   string            `json:"kernel"`
	CPUs     int               `json:"cpus"`
	Memory   int64             `json:"memory"` // bytes of guest RAM
	Disk     int64             `json:"disk"`   // bytes, of the work disk and of the system disk each
	Network  string            `json:"network"`
	BootArgs []string          `json:"boot_args,omitempty"`
	Env      []EnvVar          `json:"env,omitempty"`
	Origin   map[string]string `json:"origin,omitempty"` // where each size came from
}

// EnvVar is one variable of the environment of a VM's commands.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ImageRef is the image a VM was made from: its files as they were then.
type ImageRef struct {
	Digest string `json:"digest"`
	Rootfs string `json:"rootfs"`
	Init   string `json:"init,omitempty"`
}

// KernelRef is the kernel a VM boots with.
type KernelRef struct {
	Digest  string `json:"digest"`
	Release string `json:"release,omitempty"`
}

// Store keeps records. Put is durable when it returns.
type Store interface {
	// PutVM inserts or replaces a record. A name that another VM has is a
	// Conflict with code vm_name_taken.
	PutVM(ctx context.Context, r Record) error
	// DeleteVM removes a record; one that is not there is no error.
	DeleteVM(ctx context.Context, id string) error
	// ListVMs gives every record, oldest first.
	ListVMs(ctx context.Context) ([]Record, error)
}

// NameTaken is the error of a name that another VM has.
func NameTaken(name string) *errs.Error {
	return errs.New(errs.Conflict, "vm_name_taken", "a VM named %q exists already", name).
		WithHint("choose another name, or: banger vm delete %s", name)
}
