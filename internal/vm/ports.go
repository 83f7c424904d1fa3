package vm

import (
	"context"
	"os"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/shim"
)

// Images finds images, and makes or fetches those that are known but not here.
type Images interface {
	// Known fails with NotFound when no image and no recipe has the name.
	// It is quick and changes nothing.
	Known(ctx context.Context, name string) error
	// Ensure gives the image, made on first use with its progress shown.
	Ensure(ctx context.Context, name string, r op.Reporter) (image.Image, error)
}

// Kernels finds kernels likewise.
type Kernels interface {
	Ensure(ctx context.Context, name string, r op.Reporter) (kernel.Kernel, error)
}

// Initramfs is the base initramfs of a kernel.
type Initramfs struct {
	Path   string
	Digest string // of its content, the agent's included
}

// Seed is what the agent reads in the initramfs before anything else: secret.
type Seed struct {
	Token []byte
	Disks []string // serials to wait for
}

// Boot makes what a machine is started with.
type Boot interface {
	// Initramfs gives the kernel's initramfs, built on first use.
	Initramfs(ctx context.Context, k kernel.Kernel) (Initramfs, error)
	// Seeded writes base and the seed to dst (0600).
	Seeded(ctx context.Context, base Initramfs, dst string, s Seed) error
	// Cmdline is the kernel's command line but for the driver's own part.
	Cmdline(extra []string) string
}

// Disks makes the raw disks of VMs.
type Disks interface {
	// Make writes a blank ext4 disk; path must not exist.
	Make(ctx context.Context, path string, size int64, label string) error
	// Clone copies a disk with its holes; dst must not exist.
	Clone(ctx context.Context, src, dst string) error
	// Grow makes the disk's file larger; it never shrinks.
	Grow(path string, size int64) error
}

// HostKey is an ssh host key made on the host.
type HostKey struct {
	Private []byte // OpenSSH PEM
	Public  string // its public line
}

// SSH makes and keeps the keys of ssh.
type SSH interface {
	// NewHostKey makes an ed25519 host key for the VM.
	NewHostKey(id string) (HostKey, error)
	// Authorized gives the public lines that may log in, making the user's
	// key on first need.
	Authorized(ctx context.Context) ([]string, error)
	// Access writes what an ssh client needs to know of the VM beneath dir
	// and gives the client's options.
	Access(dir string, id, name string, key string) (Access, error)
}

// Access is what an ssh client needs to enter a VM.
type Access struct {
	User       string
	KeyPath    string
	KnownHosts string
	Alias      string
	Options    []string
}

// Shims starts the small process beside each VM.
type Shims interface {
	// Start starts a shim and returns when its sockets listen. nic is
	// passed on as its network's end, or nil; the caller closes its copy.
	Start(ctx context.Context, c shim.Config, dir string, nic *os.File, cred *hypervisor.Credential) (shim.Ref, error)
	// Alive says whether the shim still runs.
	Alive(ref shim.Ref) bool
	// Stop ends a shim and waits for it. One that is gone is no error.
	Stop(ctx context.Context, ref shim.Ref) error
}

// Ports are everything the service meets the world through.
type Ports struct {
	Store   Store
	Images  Images
	Kernels Kernels
	Boot    Boot
	Disks   Disks
	SSH     SSH
	Shims   Shims
	// Driver is the hypervisor chosen for new machines; Drivers are all
	// that machines may have been started with, by name.
	Driver   hypervisor.Driver
	Drivers  map[string]hypervisor.Driver
	Networks map[string]network.Backend
}
