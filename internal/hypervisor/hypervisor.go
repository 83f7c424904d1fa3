// Package hypervisor is the port to the programs that run a VM: the contract
// of a driver, the plain data it takes and gives, and the capabilities it may
// have. It knows devices, files and processes; it knows nothing of guests'
// insides, images or the API. Adapters stand beneath (qemu, later firecracker);
// hypervisortest holds the suite that every one of them passes.
package hypervisor

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/banger-dev/banger/internal/proc"
)

// Accelerator is how guest instructions run.
type Accelerator string

// The accelerators.
const (
	KVM       Accelerator = "kvm"
	Emulation Accelerator = "emulation" // QEMU's TCG
)

// AgentPort is the name of the virtio-serial port, in the guest, behind an
// Endpoint of kind EndpointSerial.
const AgentPort = "banger.agent"

// Kinds of Endpoint.
const (
	EndpointSerial = "serial"
	EndpointVsock  = "vsock"
)

// Driver starts machines of one hypervisor and finds them again.
// A driver holds no state of its own about machines: everything needed later
// is in the Ref, which the caller stores.
type Driver interface {
	// Name is the driver's stable name: "qemu", "firecracker".
	Name() string
	// Probe says whether and how this host can run machines with this
	// driver. It proves (runs a guest instruction where KVM is claimed)
	// and caches for the life of the driver.
	Probe(ctx context.Context) (Host, error)
	// Start starts one machine and returns when the hypervisor's control
	// channel answers and the guest runs (or, with Spec.Restore, runs on
	// from the saved state). It waits for nothing inside the guest. When
	// it fails nothing is left running and no file but the log remains.
	// Cancelling ctx aborts the start, never a machine that was returned.
	Start(ctx context.Context, spec Spec) (Machine, error)
	// Adopt finds a running machine again by its Ref, from any process of
	// the same user. ErrGone when it no longer runs (or its pid is now
	// another process's). It changes nothing in the machine. A machine that
	// runs and whose control channel does not answer is an error of kind
	// Unavailable; KillRef ends such a one.
	Adopt(ctx context.Context, ref Ref) (Machine, error)
}

// Machine is a running (or just ended) machine. Methods may be called
// concurrently. Nothing here waits for the guest's cooperation except Shutdown.
type Machine interface {
	// Ref is plain data by which Adopt finds the machine again.
	Ref() Ref
	// Done is closed when the hypervisor process has ended.
	Done() <-chan struct{}
	// Exit says how it ended; valid once Done is closed.
	Exit() Exit
	// PowerButton asks the guest's init to stop, by whatever the machine
	// has (ACPI, Ctrl-Alt-Del). ErrNoCapability where it has nothing.
	// It only asks; wait on Done.
	PowerButton(ctx context.Context) error
	// Kill ends the process (SIGKILL) and waits for it to be gone.
	// It is idempotent.
	Kill(ctx context.Context) error
	// Usage gives what the hypervisor process costs the host now.
	Usage() (Usage, error)
	// Close drops this handle (control connection, watchers) and leaves
	// the machine running. One handle at a time can hold the control
	// connection: Adopt elsewhere succeeds only after Close.
	Close() error
}

// Pauser is a machine whose vCPUs can be stopped and let on. Idempotent.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Saver is a machine whose state can be saved apart from its RAM.
type Saver interface {
	// SaveDevices writes the devices' state to path (0600, complete or not
	// there). The machine must be paused and stays so. With Spec.RAM.Shared
	// the RAM file is then the machine's RAM as it stands.
	SaveDevices(ctx context.Context, path string) error
	// SaveRAM writes a full RAM file for the paused machine to path: its
	// base file (already copied to path by the caller before the pause, or
	// empty) plus the pages private to this machine.
	SaveRAM(ctx context.Context, path string) error
}

// DiskGrower is a machine that can be told that a disk's file has grown.
type DiskGrower interface {
	GrowDisk(ctx context.Context, diskID string, size int64) error
}

// As finds an optional capability of a machine, through decorators that have
// an Unwrap() Machine method.
func As[T any](m Machine) (T, bool) {
	for m != nil {
		if t, ok := m.(T); ok {
			return t, true
		}
		u, ok := m.(interface{ Unwrap() Machine })
		if !ok {
			break
		}
		m = u.Unwrap()
	}
	var zero T
	return zero, false
}

// Errors a caller branches on.
var (
	ErrGone         = errors.New("the hypervisor process is gone")
	ErrNoCapability = errors.New("the driver cannot do this")
)

// Host is what a driver found out about this host.
type Host struct {
	Driver      string
	Binary      string // path of the hypervisor program
	Version     string // "7.2.22"
	Accelerator Accelerator
	// WhyNotKVM is one line saying why KVM is not used; "" when it is.
	WhyNotKVM string
	Caps      Caps
	// CPUModel and TSCkHz belong to a template's key. TSCkHz is 0 where
	// the guest's TSC is not the host's.
	CPUModel string
	TSCkHz   uint64
}

// Caps are a driver's capabilities on this host.
type Caps struct {
	Pause       bool
	Snapshot    bool // Saver, and Spec.Restore
	GrowDisk    bool
	UserNet     bool // takes a Netdev whose File is a stream socket
	TAP         bool // takes a Netdev whose File is an open tap
	TAPByName   bool // opens a TAP itself, by Netdev.TAP
	MaxCPUs     int
	SafeCPUs    int // vCPUs the kernel is known to stand (emulation: 1)
	NeedsELF    bool
	CodeBuffer  bool          // has an emulator code buffer that counts as memory
	BootTimeout time.Duration // how long a boot to the agent may take at most
}

// Spec is everything a machine is made of: plain data, complete, validated by
// the driver before anything is started. Paths are absolute.
//
// Files and users: the driver opens disks, sockets, logs and saved states
// itself and hands the hypervisor open descriptors, so those may stay 0600 and
// the caller's, in directories that are 0700. Kernel, Initrd and a private
// RAM.Path the hypervisor opens again through a descriptor, which skips the
// directories but not the file's own mode: with User set, one that User may
// not read is copied for the machine, so let kernels and initramfs files be
// readable by others (0644 beneath a 0700 directory). A private RAM.Path is
// only ever read, and need not be readable by User where the daemon is root; a
// shared one is made by the driver and belongs to User; the caller takes it
// over once the machine has ended.
type Spec struct {
	// ID names everything made for the machine; [a-z0-9-], 1..40 bytes.
	ID string
	// Dir is the VM's own directory (0700), for files of the driver.
	Dir string
	// SockDir is the VM's own short directory for sockets (paths ≤ 107 bytes).
	SockDir string
	// User is the uid/gid the hypervisor runs as; nil means as the caller.
	User *Credential

	CPUs   int
	Memory int64 // bytes of guest RAM
	RAM    RAMFile

	// Kernel is an ELF vmlinux, Initrd an initramfs or "", Cmdline what the
	// boot chain asks for after the driver's own. All three are for a cold
	// boot and not looked at with Restore.
	Kernel  string
	Initrd  string
	Cmdline string
	// KernelHZ is the kernel's CONFIG_HZ (loops per jiffy follow it); 0
	// means 250.
	KernelHZ int

	Disks   []Disk
	Nets    []Netdev
	Console Console
	// CodeBuffer bounds the emulator's translation buffer in bytes; 0
	// means the driver's rule (CodeBufferFor).
	CodeBuffer int64
	// Restore starts from a saved state in place of booting.
	Restore *Restore
	// StartPaused leaves the machine stopped before its first instruction
	// (or right after the state was loaded).
	StartPaused bool
	// Limits for the hypervisor process.
	MaxOpenFiles uint64
}

// Credential is a numeric user and group.
type Credential struct{ UID, GID uint32 }

// RAMFile says where guest RAM lies.
type RAMFile struct {
	// Path is the file that backs RAM; "" means anonymous memory.
	Path string
	// Shared writes guest RAM through to the file (making a template),
	// which the driver makes and which must not exist. Otherwise the file
	// exists, is mapped privately and never changes.
	Shared bool
}

// Disk is a virtio-blk disk on a raw file. The order in Spec.Disks is the
// order in the guest (vda, vdb, ...).
type Disk struct {
	ID       string // letters and digits; also the virtio serial, ≤ 20 bytes
	Path     string
	ReadOnly bool
}

// Netdev joins a NIC to a network. With File alone that is one end of a stream
// socketpair (each Ethernet frame after its length, four bytes, big endian);
// with File and TAP an open tap; with TAP alone an interface that the driver
// opens. The driver passes File on; the caller closes its copy after Start.
type Netdev struct {
	ID   string // letters and digits
	MAC  string
	MTU  int // 0 for the guest's default
	File *os.File
	TAP  string // interface name
}

// Console takes what the guest writes on its console: Socket is the path of a
// listening Unix stream socket (the shim's), Log a plain file; "" for none.
type Console struct {
	Socket string
	Log    string
}

// Restore names a saved state: device state, with RAM in Spec.RAM.
type Restore struct {
	Devices string
}

// Ref finds a machine again. It is stored as JSON.
type Ref struct {
	Driver   string        `json:"driver"`
	ID       string        `json:"id"`
	Process  proc.Identity `json:"process"`
	Control  string        `json:"control"` // control socket
	Endpoint Endpoint      `json:"endpoint"`
	Console  string        `json:"console,omitempty"`
	// Log is the hypervisor's own log, where the reason of its end is found.
	Log string `json:"log,omitempty"`
	// RAMBase is the file that RAM maps, for SaveRAM; RAMShared says that
	// writes go through to it.
	RAMBase   string `json:"ram_base,omitempty"`
	RAMShared bool   `json:"ram_shared,omitempty"`
	Memory    int64  `json:"memory"`
	// CodeBuffer is the bound of the emulator's code buffer, 0 for none.
	CodeBuffer int64 `json:"code_buffer,omitempty"`
}

// Endpoint is where the guest's agent is reached. Kind "serial" is one raw
// byte pipe (a Unix socket that takes one connection at a time); kind "vsock"
// is a Firecracker-style Unix socket with a CONNECT handshake, many connections.
type Endpoint struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	Port uint32 `json:"port,omitempty"`
}

// Cause is why a machine ended, as far as is known.
type Cause string

// The causes.
const (
	CauseUnknown  Cause = ""         // nothing was seen of it
	CausePowerOff Cause = "poweroff" // the guest powered off
	CauseReset    Cause = "reset"    // the guest rebooted, or its kernel panicked
	CauseHost     Cause = "host"     // ended from outside, Kill included
	CauseCrash    Cause = "crash"    // the hypervisor failed
)

// Exit says how a hypervisor process ended.
type Exit struct {
	Known  bool // false when this process was not its parent
	Code   int
	Signal int
	Cause  Cause
	// Reason is one line for a person ("the guest powered off", the last
	// line of the hypervisor's log); never empty.
	Reason string
}

// Usage is what a hypervisor process costs.
type Usage struct {
	CPU        time.Duration
	RSS        int64 // bytes, shared template pages included
	Private    int64 // bytes private to this process
	CodeBuffer int64 // bound of the emulator's code buffer, counted in budgets
}
