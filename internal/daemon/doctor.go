package daemon

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/banger-dev/banger/internal/apiserver"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/doctor"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/choose"
	"github.com/banger-dev/banger/internal/hypervisor/hosted"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/ssh"
	"github.com/banger-dev/banger/internal/units"
	"github.com/banger-dev/banger/internal/vm"
)

// debianKeyring signs what the default image and kernel are made from.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Doctor gathers what is to be said of this host.
func (d *Daemon) Doctor(ctx context.Context) ([]apiserver.Check, error) {
	l, c, h := d.opt.Layout, d.config, doctor.ThisHost()
	choice, cerr := choose.Choose(ctx, c.Hypervisor, d.chosen.drivers)
	var out []apiserver.Check
	for _, k := range doctor.Run(ctx, append([]doctor.Provider{
		doctor.Config(c.Path, nil),
		doctor.Dirs(h, []doctor.Dir{{What: "state", Path: l.State}, {What: "data", Path: l.Data}, {What: "cache", Path: l.Cache}, {What: "runtime", Path: l.Runtime}}),
		doctor.Sockets(filepath.Join(l.VMRun("0123456789abcdef"), paths.ConsoleSock)),
		doctor.Func("agent", "it is every guest's first program", func(context.Context) (string, error) {
			return agentPath(d.opt.Getenv, d.opt.Program)
		}),
		doctor.Func("ssh key", "with it ssh enters VMs; banger shell does without", func(context.Context) (string, error) {
			_, err := ssh.EnsureUserKey(c.SSHKeyPath, c.SSHKeyPath == l.SSHKey())
			return c.SSHKeyPath, err
		}),
		doctor.Program(h, doctor.ToolE2fsprogs),
		doctor.Program(h, doctor.ToolSSH),
		doctor.Program(h, doctor.ToolGit),
		doctor.Images(h, debianKeyring, d.made(ctx)),
		doctor.Space(h, []doctor.Place{{What: "images", Path: l.Data, Need: units.GiB, Want: 4 * units.GiB}, {What: "VMs", Path: l.State, Need: units.GiB / 2, Want: 4 * units.GiB}}),
		doctor.Isolation(h),
		d.daemonCheck,
	}, d.hypervisorChecks(h, choice, cerr)...)).Checks {
		out = append(out, apiserver.Check{Name: k.Name, Status: string(k.Status), Message: k.Message, Why: k.Why, Fix: k.Fix})
	}
	return out, nil
}

// hypervisorChecks say with what VMs run here, and how large they are.
func (d *Daemon) hypervisorChecks(h doctor.Host, choice choose.Choice, err error) []doctor.Provider {
	c := d.config
	if c.Hypervisor == hosted.Name {
		return []doctor.Provider{doctor.Func("hypervisor", "VMs are plain processes: for tests only", func(context.Context) (string, error) { return hosted.Name, nil })}
	}
	list := []doctor.Provider{
		doctor.Func("hypervisor", "it runs the VMs", func(context.Context) (string, error) {
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%s %s, %s", choice.Host.Driver, choice.Host.Version, choice.Host.Accelerator), nil
		}),
		doctor.QEMU(h, c.QEMUBin, c.Hypervisor != "firecracker"),
		doctor.Firecracker(h, c.FirecrackerBin, c.Hypervisor == "firecracker"),
	}
	if err != nil {
		return list
	}
	list = append(list, doctor.KVM(h, choice.Host.Accelerator == hypervisor.KVM, choice.Host.WhyNotKVM))
	size := hostSize()
	size.Hypervisor = choice.Host
	spec, err := vm.Resolve(vm.Spec{}, d.defaults(), size)
	if err != nil {
		return append(list, doctor.Func("default sizes", "what a VM gets that asks for nothing else", func(context.Context) (string, error) { return "", err }))
	}
	origin := map[string]string{vm.FromHost: "derived from this host", vm.FromConfig: c.Path}
	return append(list,
		doctor.Memory(h, hypervisor.Budget(choice.Host.Accelerator, spec.Memory, 0)),
		doctor.Sizes([]doctor.Size{
			{Name: "cpus", Value: fmt.Sprint(spec.CPUs), Origin: origin[spec.Origin["cpus"]]},
			{Name: "memory", Value: vm.Size(spec.Memory), Origin: origin[spec.Origin["memory"]]},
			{Name: "disk", Value: vm.Size(spec.Disk), Origin: origin[spec.Origin["disk"]]},
		}))
}

// made says whether the default image and a kernel are here already.
func (d *Daemon) made(context.Context) bool {
	img, err := d.rooms.Images.Get(d.config.DefaultImageName)
	if err != nil {
		return false
	}
	_, err = d.rooms.Kernels.Get(img.Manifest.Kernel)
	return err == nil
}

// daemonCheck is this daemon itself, with what it left unowned.
func (d *Daemon) daemonCheck(ctx context.Context) []doctor.Check {
	const why = "it keeps the VMs"
	found, _, err := d.vms.GC(ctx, true)
	c := doctor.FromError("daemon", why, fmt.Sprintf("bangerd %s, %d VMs", buildinfo.Get().Version, len(d.vms.List(nil))), err)
	if err == nil && len(found) > 0 {
		c.Status, c.Message, c.Fix = doctor.Warn, fmt.Sprintf("%d processes or directories that no VM owns: %s", len(found), found[0]), []string{"banger system gc"}
	}
	return []doctor.Check{c}
}
