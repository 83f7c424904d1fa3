package apiserver

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/banger-dev/banger/internal/config"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/vm"
)

// Rooms are what the server asks.
type Rooms struct {
	VMs     VMs
	Images  Images
	Kernels Kernels
	System  System
}

// VMs is what the server needs of package vm.
type VMs interface {
	Create(context.Context, vm.CreateRequest, op.Reporter) (vm.View, error)
	Start(context.Context, vm.StartRequest, op.Reporter) (vm.View, error)
	Stop(ctx context.Context, ref string, timeout time.Duration, force bool, r op.Reporter) (vm.View, error)
	Restart(ctx context.Context, ref string, timeout time.Duration, wait string, waitTimeout time.Duration, r op.Reporter) (vm.View, error)
	Wait(ctx context.Context, ref, what string, limit time.Duration, r op.Reporter) (vm.View, error)
	Kill(ctx context.Context, ref string) (vm.View, error)
	Delete(ctx context.Context, ref string, force bool) (vm.View, error)
	List(labels map[string]string) []vm.View
	Get(ref string) (vm.View, error)
	Set(context.Context, vm.SetRequest) (vm.View, []string, error)
	Rename(ctx context.Context, ref, name string) (vm.View, error)
	Prune(ctx context.Context, dryRun bool) ([]vm.View, int64, error)
	GC(ctx context.Context, dryRun bool) (found, removed []string, err error)
	SetWorkspace(ctx context.Context, ref, path string) error
	Exec(context.Context, vm.ExecRequest, vm.ExecIO) error
	CopyIn(ctx context.Context, ref string, req wire.TarInRequest, r io.Reader) (wire.TarReply, error)
	CopyOut(ctx context.Context, ref string, req wire.TarOutRequest, w io.Writer) (wire.TarReply, error)
	Dial(ctx context.Context, ref, network, address string) (net.Conn, error)
	SSHAccess(ctx context.Context, ref string) (vm.View, vm.Access, error)
	Logs(ctx context.Context, req vm.LogsRequest, f func(source string, data []byte) error) error
	Stats(ctx context.Context, refs []string, follow bool, interval time.Duration, f func([]vm.Stats) error) error
	Templates() []vm.TemplateView
	DeleteTemplates(keys []string, all bool) (removed []string, freed int64, err error)
}

// Images is what the server needs of package image.
type Images interface {
	List() ([]image.Image, error)
	Get(ref string) (image.Image, error)
	Pull(ctx context.Context, name string, force bool, r op.Reporter) (image.Image, error)
	// Catalog lists what could be pulled.
	Catalog() []string
}

// Kernels is what the server needs of package kernel.
type Kernels interface {
	List() ([]kernel.Kernel, error)
	Get(ref string) (kernel.Kernel, error)
	Pull(ctx context.Context, name string, force bool, r op.Reporter) (kernel.Kernel, error)
	Catalog() []string
}

// System is the daemon itself.
type System interface {
	Info(context.Context) (Info, error)
	Doctor(context.Context) ([]Check, error)
	Config() config.Loaded
	// Shutdown asks the daemon to end; it returns at once.
	Shutdown(stopVMs bool)
}

// Info is what the daemon says of itself.
type Info struct {
	PID                            int
	Started                        time.Time
	StateDir, DataDir, Config, Log string
	Running                        int
	Exec                           string
}

// Check is one finding of the doctor.
type Check struct {
	Name, Status, Message, Why string
	Fix                        []string
}
