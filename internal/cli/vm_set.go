package cli

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
)

// setView is what vm set prints.
type setView struct {
	VM           vmView   `json:"vm" doc:"the VM afterwards"`
	NeedsRestart []string `json:"needs_restart" doc:"what takes effect when the VM is restarted"`
}

func newVMSet(a *app) *cobra.Command {
	var (
		cpus           uint32
		memory, disk   size
		expires        span
		noExpiry       bool
		labels, remove []string
	)
	cmd := &cobra.Command{
		Use:     "set NAME",
		Short:   "Change a VM's sizes, labels or expiry",
		Long:    "Change a VM's sizes, labels or expiry. Disks only grow. It says what needs a restart.",
		Example: "banger vm set web --memory 4G\nbanger vm set web --label team=api --expires 8h",
		Args:    args(1, 1, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			fs := cmd.Flags()
			req := &bangerv1.SetRequest{Vm: args[0], RemoveLabels: remove}
			var err error
			if req.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			if fs.Changed("cpus") {
				if cpus == 0 {
					return errs.New(errs.Invalid, "cpus_invalid", "--cpus 0: a machine has at least one").WithHint("for example: --cpus 1")
				}
				req.Cpus = &cpus
			}
			if fs.Changed("memory") {
				req.Memory = (*int64)(&memory)
			}
			if fs.Changed("disk") {
				req.Disk = (*int64)(&disk)
			}
			switch {
			case noExpiry && expires != 0:
				return usage("--expires and --no-expiry contradict each other")
			case noExpiry:
				req.Expires = durationpb.New(0)
			default:
				req.Expires = expires.proto()
			}
			if req.Cpus == nil && req.Memory == nil && req.Disk == nil && req.Expires == nil && len(labels)+len(remove) == 0 {
				return usage("nothing to set").WithHint("for example: banger vm set %s --memory 4G", args[0])
			}
			return runVMSet(cmd.Context(), a, req)
		},
		ValidArgsFunction: firstVM(a),
	}
	fs := cmd.Flags()
	fs.Uint32Var(&cpus, "cpus", 0, "virtual CPUs")
	fs.Var(&memory, "memory", "RAM: 512M, 2G, 1.5GiB")
	fs.Var(&disk, "disk", "size of its disks; only more than now")
	fs.Var(&expires, "expires", "delete it after this long, from now")
	fs.BoolVar(&noExpiry, "no-expiry", false, "keep it")
	fs.StringArrayVar(&labels, "label", nil, "label it `KEY=VALUE`")
	fs.StringArrayVar(&remove, "remove-label", nil, "take the label `KEY` away")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: setView{}})
}

func runVMSet(ctx context.Context, a *app, req *bangerv1.SetRequest) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.VMs.Set(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	if a.ui.JSON {
		return a.ui.JSONValue(setView{VM: viewVM(resp.Msg.GetVm()), NeedsRestart: orEmpty(resp.Msg.GetNeedsRestart())})
	}
	if n := resp.Msg.GetNeedsRestart(); len(n) > 0 {
		a.ui.Note("%s after: banger vm restart %s", strings.Join(n, ", "), resp.Msg.GetVm().GetName())
	}
	return nil
}

func newVMRename(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rename NAME NEW",
		Short:   "Give a VM another name",
		Example: "banger vm rename brisk-otter web\nbanger vm rename web api --json",
		Args:    args(2, 2, "the name of a VM and a new one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVMRename(cmd.Context(), a, args[0], args[1])
		},
		ValidArgsFunction: firstVM(a),
	}
	return a.declare(cmd, verb{effect: effectOther, shape: shapeObject, output: vmView{}})
}

func runVMRename(ctx context.Context, a *app, vm, name string) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.VMs.Rename(ctx, connect.NewRequest(&bangerv1.RenameRequest{Vm: vm, Name: name}))
	if err != nil {
		return err
	}
	if a.ui.JSON {
		return a.ui.JSONValue(viewVM(resp.Msg))
	}
	return nil
}

// pruneView is what vm prune prints.
type pruneView struct {
	VMs   []string `json:"vms" doc:"names of the VMs that were deleted, or would be"`
	Freed int64    `json:"freed" doc:"bytes of the host's disk"`
}

func newVMPrune(a *app) *cobra.Command {
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use:     "prune",
		Short:   "Delete all stopped VMs",
		Example: "banger vm prune --dry-run\nbanger vm prune -y",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runVMPrune(cmd.Context(), a, dryRun, yes)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "list them, delete nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: pruneView{}})
}

func runVMPrune(ctx context.Context, a *app, dryRun, yes bool) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	prune := func(dry bool) (pruneView, error) {
		resp, err := c.VMs.Prune(ctx, connect.NewRequest(&bangerv1.PruneRequest{DryRun: dry}))
		v := pruneView{VMs: []string{}}
		if err != nil {
			return v, err
		}
		for _, vm := range resp.Msg.GetVms() {
			v.VMs = append(v.VMs, vm.GetName())
		}
		v.Freed = resp.Msg.GetFreed()
		return v, nil
	}
	if !dryRun && !yes && a.ui.InTTY() && a.ui.ErrTTY() && !a.ui.JSON {
		would, err := prune(true)
		if err != nil {
			return err
		}
		if len(would.VMs) > 0 {
			if err := a.ui.Confirm(ctx, "delete "+joinNames(would.VMs)+" with "+its(len(would.VMs))+" disks?"); err != nil {
				return err
			}
		}
	}
	v, err := prune(dryRun)
	if err != nil {
		return err
	}
	if a.ui.JSON {
		return a.ui.JSONValue(v)
	}
	for _, n := range v.VMs {
		if err := a.ui.Print("%s", n); err != nil {
			return err
		}
	}
	verb := "freed"
	if dryRun {
		verb = "would be freed"
	}
	a.ui.Note("%s, %s %s", count(len(v.VMs), "VM"), ui.Bytes(v.Freed), verb)
	return nil
}

func newVMWait(a *app) *cobra.Command {
	until := choose("system", "agent")
	var timeout span
	cmd := &cobra.Command{
		Use:     "wait NAME…",
		Short:   "Wait until VMs are ready",
		Example: "banger vm wait web\nbanger vm wait web db --for agent --wait-timeout 30s",
		Args:    args(1, -1, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVMWait(cmd.Context(), a, args, until.value, timeout)
		},
		ValidArgsFunction: manyVMs(a, "running", "starting"),
	}
	cmd.Flags().Var(&until, "for", "systemd has settled (system) or commands can run (agent)")
	cmd.Flags().Var(&timeout, "wait-timeout", "how long to wait")
	return a.declare(cmd, verb{effect: effectRead, shape: shapeArray, output: resultView{}})
}

func runVMWait(ctx context.Context, a *app, refs []string, until string, timeout span) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	return each(ctx, a, c, refs, "ready", func(ctx context.Context, vm *bangerv1.VM, f *follower) (*bangerv1.VM, error) {
		stream, err := c.VMs.Wait(ctx, connect.NewRequest(&bangerv1.WaitRequest{Vm: vm.GetId(), For: until, Timeout: timeout.proto()}))
		res, err := f.follow(stream, err)
		return res.vm, err
	})
}
