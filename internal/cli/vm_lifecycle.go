package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
)

// lifecycleOptions are those of start, stop, restart, kill and delete; each
// verb uses what it has flags for.
type lifecycleOptions struct {
	names       []string
	all         bool
	force       bool
	yes         bool
	cold        bool
	wait        choice
	waitTimeout span
	timeout     span
}

// lifecycle builds what the lifecycle verbs have in common.
func lifecycle(a *app, cmd *cobra.Command, o *lifecycleOptions, v effect, run func(context.Context, *app, lifecycleOptions) error, states ...string) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.names = args
		if err := namesOrAll(cmd.CommandPath(), args, o.all); err != nil {
			return err
		}
		return run(cmd.Context(), a, *o)
	}
	cmd.ValidArgsFunction = manyVMs(a, states...)
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "all there are")
	return a.declare(cmd, verb{effect: v, shape: shapeArray, output: resultView{}})
}

func (o *lifecycleOptions) waitFlags(cmd *cobra.Command) {
	o.wait = choose("agent", "system")
	cmd.Flags().Var(&o.wait, "wait", "ready when commands can run (agent) or when systemd has settled (system)")
	cmd.Flags().Var(&o.waitTimeout, "wait-timeout", "how long to wait for that")
}

// operate runs one streaming verb on the VMs.
func operate(ctx context.Context, a *app, o lifecycleOptions, done string, want func(*bangerv1.VM) bool,
	call func(context.Context, *apiclient.Client, string) (*connect.ServerStreamForClient[bangerv1.OpEvent], error)) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	refs, err := names(ctx, c, o.names, o.all, want)
	if err != nil {
		return err
	}
	return each(ctx, a, c, refs, done, func(ctx context.Context, vm *bangerv1.VM, f *follower) (*bangerv1.VM, error) {
		stream, err := call(ctx, c, vm.GetId())
		res, err := f.follow(stream, err)
		return res.vm, err
	})
}

func newVMStart(a *app) *cobra.Command {
	var o lifecycleOptions
	cmd := &cobra.Command{Use: "start NAME…", Short: "Start stopped VMs", Example: "banger vm start web\nbanger vm start web db --wait system"}
	cmd.Flags().BoolVar(&o.cold, "cold", false, "boot it, even where a template would be quicker")
	o.waitFlags(cmd)
	return lifecycle(a, cmd, &o, effectIdempotent, runVMStart, "stopped", "broken", "suspended")
}

func runVMStart(ctx context.Context, a *app, o lifecycleOptions) error {
	return operate(ctx, a, o, "started", isState(bangerv1.State_STATE_STOPPED, bangerv1.State_STATE_BROKEN),
		func(ctx context.Context, c *apiclient.Client, id string) (*connect.ServerStreamForClient[bangerv1.OpEvent], error) {
			return c.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartRequest{Vm: id, Cold: o.cold, Wait: o.wait.value, WaitTimeout: o.waitTimeout.proto()}))
		})
}

func newVMStop(a *app) *cobra.Command {
	var o lifecycleOptions
	cmd := &cobra.Command{Use: "stop NAME…", Short: "Stop VMs in order",
		Long:    "Stop VMs in order: the guest is asked, then its init, then the VM is killed,\neach within a limit. What is on its disks stays.",
		Example: "banger stop web\nbanger stop --all --stop-timeout 30s"}
	cmd.Flags().Var(&o.timeout, "stop-timeout", "how long the guest may take before it is killed")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "kill it where stopping in order does not work at once")
	return lifecycle(a, cmd, &o, effectIdempotent, runVMStop, "running", "paused")
}

func runVMStop(ctx context.Context, a *app, o lifecycleOptions) error {
	return operate(ctx, a, o, "stopped", isUp,
		func(ctx context.Context, c *apiclient.Client, id string) (*connect.ServerStreamForClient[bangerv1.OpEvent], error) {
			return c.VMs.Stop(ctx, connect.NewRequest(&bangerv1.StopRequest{Vm: id, Force: o.force, Timeout: o.timeout.proto()}))
		})
}

func newVMRestart(a *app) *cobra.Command {
	var o lifecycleOptions
	cmd := &cobra.Command{Use: "restart NAME…", Short: "Stop VMs in order and start them again", Example: "banger vm restart web\nbanger vm restart --all --wait system"}
	cmd.Flags().Var(&o.timeout, "stop-timeout", "how long the guest may take before it is killed")
	o.waitFlags(cmd)
	return lifecycle(a, cmd, &o, effectOther, runVMRestart, "running", "stopped", "paused", "broken")
}

func runVMRestart(ctx context.Context, a *app, o lifecycleOptions) error {
	return operate(ctx, a, o, "restarted", isUp,
		func(ctx context.Context, c *apiclient.Client, id string) (*connect.ServerStreamForClient[bangerv1.OpEvent], error) {
			return c.VMs.Restart(ctx, connect.NewRequest(&bangerv1.RestartRequest{Vm: id, Timeout: o.timeout.proto(), Wait: o.wait.value, WaitTimeout: o.waitTimeout.proto()}))
		})
}

func newVMKill(a *app) *cobra.Command {
	var o lifecycleOptions
	cmd := &cobra.Command{Use: "kill NAME…", Short: "Stop VMs at once, like pulling the plug", Example: "banger vm kill web\nbanger vm kill --all"}
	return lifecycle(a, cmd, &o, effectIdempotent, runVMKill, "running", "paused", "starting", "stopping")
}

func runVMKill(ctx context.Context, a *app, o lifecycleOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	refs, err := names(ctx, c, o.names, o.all, isUp)
	if err != nil {
		return err
	}
	return each(ctx, a, c, refs, "killed", func(ctx context.Context, vm *bangerv1.VM, _ *follower) (*bangerv1.VM, error) {
		resp, err := c.VMs.Kill(ctx, connect.NewRequest(&bangerv1.VMRef{Vm: vm.GetId()}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	})
}

func newVMDelete(a *app, use string) *cobra.Command {
	var o lifecycleOptions
	cmd := &cobra.Command{Use: use + " NAME…", Short: "Delete VMs and their disks",
		Long:    "Delete VMs and their disks. A running one is refused without --force.",
		Example: "banger rm web\nbanger rm -f web db\nbanger vm delete --all --force -y"}
	if use == "delete" {
		cmd.Aliases = []string{"rm"}
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "running ones as well")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return lifecycle(a, cmd, &o, effectIdempotent, runVMDelete)
}

func runVMDelete(ctx context.Context, a *app, o lifecycleOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	refs, err := names(ctx, c, o.names, o.all, func(v *bangerv1.VM) bool { return o.force || !isUp(v) })
	if err != nil {
		return err
	}
	if len(refs) > 0 && !o.yes && !a.ui.JSON {
		if err := a.ui.Confirm(ctx, fmt.Sprintf("delete %s with %s disks?", joinNames(refs), its(len(refs)))); err != nil {
			return err
		}
	}
	return each(ctx, a, c, refs, "deleted", func(ctx context.Context, vm *bangerv1.VM, _ *follower) (*bangerv1.VM, error) {
		resp, err := c.VMs.Delete(ctx, connect.NewRequest(&bangerv1.DeleteRequest{Vm: vm.GetId(), Force: o.force}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetVm(), nil
	})
}

func its(n int) string {
	if n == 1 {
		return "its"
	}
	return "their"
}

func isState(states ...bangerv1.State) func(*bangerv1.VM) bool {
	return func(v *bangerv1.VM) bool {
		for _, s := range states {
			if v.GetState() == s {
				return true
			}
		}
		return false
	}
}

// isUp says that a VM has a hypervisor.
func isUp(v *bangerv1.VM) bool {
	return isState(bangerv1.State_STATE_RUNNING, bangerv1.State_STATE_STARTING, bangerv1.State_STATE_PAUSED, bangerv1.State_STATE_STOPPING)(v)
}
