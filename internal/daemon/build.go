package daemon

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/banger-dev/banger/images"
	"github.com/banger-dev/banger/internal/apiserver"
	"github.com/banger-dev/banger/internal/disk"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/choose"
	"github.com/banger-dev/banger/internal/hypervisor/hosted"
	"github.com/banger-dev/banger/internal/hypervisor/qemu"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/image/debian"
	"github.com/banger-dev/banger/internal/kernel"
	kdebian "github.com/banger-dev/banger/internal/kernel/debian"
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/network/userspace"
	"github.com/banger-dev/banger/internal/shim"
	"github.com/banger-dev/banger/internal/vm"
	"github.com/banger-dev/banger/kernels"
)

// handoverDelay is how long a VM nobody waits on to settle stays with the
// agent alone (docs/decisions/0020-late-handover.md).
const handoverDelay = 700 * time.Millisecond

// build makes the rooms from the configuration.
func (d *Daemon) build(ctx context.Context) error {
	l, c := d.opt.Layout, d.config
	boot, err := bootID()
	if err != nil {
		return err
	}
	drivers := d.drivers()
	byName := map[string]hypervisor.Driver{}
	for _, drv := range drivers {
		byName[drv.Name()] = drv
	}
	d.chosen = &chooser{want: c.Hypervisor, drivers: drivers}
	if c.Hypervisor != hosted.Name {
		d.chosen.drivers = drivers[:len(drivers)-1] // the hosted one is for those who name it
	}
	user, err := userspace.New(userspace.Config{LAN: c.LAN})
	if err != nil {
		return err
	}
	ports := vm.Ports{
		Store:   d.store,
		SSH:     sshKeys{path: c.SSHKeyPath, create: c.SSHKeyPath == l.SSHKey()},
		Shims:   shim.Launcher{Program: d.opt.Program},
		Driver:  d.chosen,
		Drivers: byName,
		Disks:   disks{&disk.Maker{Cache: filepath.Join(l.Cache, "disks")}},
	}
	ports.Networks = map[string]network.Backend{"user": user}
	imgs, krns, err := d.sources(&ports)
	if err != nil {
		return err
	}
	opt := vm.Options{
		Layout: l, Log: d.log, Events: d.events, BootID: boot, Host: hostSize,
		Defaults:    d.defaults(),
		BootTimeout: time.Duration(c.Limits.BootTimeout), StopTimeout: time.Duration(c.Limits.StopTimeout),
		ParallelBoots: c.Limits.ParallelBoots, TemplateSpace: int64(c.Limits.Templates), HandoverDelay: handoverDelay,
	}
	if opt.ParallelBoots == 0 {
		opt.ParallelBoots = cores()
	}
	if os.Geteuid() == 0 && c.Hypervisor != hosted.Name {
		opt.FirstUID = uint32(c.Limits.FirstUID)
	}
	opt.Failpoint = failpoint(d.opt.Failpoint)
	d.vms = vm.New(ctx, ports, opt)
	d.rooms = apiserver.Rooms{VMs: d.vms, Images: imgs, Kernels: krns, System: d}
	return nil
}

// defaults are the configured sizes and choices of a VM.
func (d *Daemon) defaults() vm.Defaults {
	c := d.config
	out := vm.Defaults{Image: c.DefaultImageName, CPUs: c.VMDefaults.CPUs, Memory: int64(c.VMDefaults.Memory), Disk: int64(c.VMDefaults.Disk)}
	if c.Network != choose.Auto {
		out.Network = c.Network
	}
	return out
}

// drivers lists every hypervisor in order of preference.
func (d *Daemon) drivers() []hypervisor.Driver {
	self := d.opt.Program
	return []hypervisor.Driver{
		qemu.New(qemu.Options{Binary: d.config.QEMUBin, Launcher: []string{self, "launch"}}),
		hosted.New(hosted.Options{Command: []string{self, "hosted"}}),
	}
}

// sources builds what VMs are made of; the hosted driver needs none of it.
func (d *Daemon) sources(ports *vm.Ports) (apiserver.Images, apiserver.Kernels, error) {
	l := d.opt.Layout
	recipes, err := kernel.ReadRecipes(kernels.Recipes)
	if err != nil {
		return nil, nil, err
	}
	krns, err := kernel.Open(l.Kernels(), recipes, &kdebian.Source{Cache: filepath.Join(l.Cache, "kernels"), Root: os.DirFS("/")})
	if err != nil {
		return nil, nil, err
	}
	imgs, err := image.Open(l.Images(), &debian.Source{Recipes: images.FS, Cache: filepath.Join(l.Cache, "images"), Getenv: d.opt.Getenv, Root: "/"})
	if err != nil {
		return nil, nil, err
	}
	ports.Images, ports.Kernels = imgs, krns
	ports.Boot = &bootFiles{dir: filepath.Join(l.Data, "initramfs"), agent: func() (string, error) { return agentPath(d.opt.Getenv, d.opt.Program) }}
	if d.config.Hypervisor == hosted.Name {
		dir := filepath.Join(l.Data, "hosted")
		ports.Images, ports.Kernels, ports.Boot = hostedImages{Dir: dir}, hostedKernels{Dir: dir}, hostedBoot{Dir: dir}
	}
	return imgs, kernelRoom{krns, recipes}, nil
}

// chooser is the driver that this host runs VMs with, found out at first need:
// looking costs time that a daemon which only lists VMs need not spend.
type chooser struct {
	want    string
	drivers []hypervisor.Driver

	mu     sync.Mutex
	choice choose.Choice
}

var _ hypervisor.Driver = (*chooser)(nil)

func (c *chooser) pick(ctx context.Context) (hypervisor.Driver, error) {
	c.mu.Lock()
	chosen := c.choice.Driver
	c.mu.Unlock()
	if chosen != nil {
		return chosen, nil
	}
	choice, err := choose.Choose(ctx, c.want, c.drivers)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.choice.Driver == nil {
		c.choice = choice
	}
	return c.choice.Driver, nil
}

// Name is the chosen driver's, "" before the first Probe.
func (c *chooser) Name() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.choice.Driver == nil {
		return ""
	}
	return c.choice.Driver.Name()
}

// Probe chooses, and says what the chosen driver found.
func (c *chooser) Probe(ctx context.Context) (hypervisor.Host, error) {
	d, err := c.pick(ctx)
	if err != nil {
		return hypervisor.Host{}, err
	}
	return d.Probe(ctx)
}

// Start starts a machine with the chosen driver.
func (c *chooser) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	d, err := c.pick(ctx)
	if err != nil {
		return nil, err
	}
	return d.Start(ctx, spec)
}

// Adopt finds a machine of whichever driver started it.
func (c *chooser) Adopt(ctx context.Context, ref hypervisor.Ref) (hypervisor.Machine, error) {
	for _, d := range c.drivers {
		if d.Name() == ref.Driver {
			return d.Adopt(ctx, ref)
		}
	}
	return nil, errs.New(errs.Unsupported, "driver_unknown", "this banger has no driver %q", ref.Driver)
}
