package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

// createOptions are those of vm create.
type createOptions struct {
	spec    specFlags
	env     []string
	noStart bool
	dryRun  bool
	request *bangerv1.CreateRequest
}

func newVMCreate(a *app) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make a VM and start it, without entering it",
		Long:    "Make a VM and start it, without entering it. Prints its name.",
		Example: "banger vm create --name web --memory 2G\nname=$(banger vm create -q --no-start --image debian-bookworm)",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.parse(a, cmd); err != nil {
				return err
			}
			return runVMCreate(cmd.Context(), a, o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	fs := cmd.Flags()
	o.spec.add(fs)
	fs.StringArrayVarP(&o.env, "env", "e", nil, "set a variable for all its commands: `NAME=VALUE`, or NAME for the value it has here")
	fs.BoolVar(&o.noStart, "no-start", false, "make it, do not start it")
	fs.BoolVar(&o.dryRun, "dry-run", false, "check everything, make nothing")
	group(fs, "Machine", "env")
	completeSpec(a, cmd)
	return a.declare(cmd, verb{effect: effectOther, shape: shapeObject, output: vmView{}})
}

func (o *createOptions) parse(a *app, cmd *cobra.Command) error {
	fs := cmd.Flags()
	if o.noStart {
		for _, f := range []string{"cold", "wait", "wait-timeout"} {
			if fs.Changed(f) {
				return usage("--no-start and --%s contradict each other", f)
			}
		}
	}
	var err error
	if o.request, err = o.spec.request(fs); err != nil {
		return err
	}
	env, err := parseEnv(o.env, a.lookup)
	if err != nil {
		return err
	}
	o.request.Spec.Env, o.request.NoStart, o.request.ValidateOnly = env, o.noStart, o.dryRun
	return nil
}

func runVMCreate(ctx context.Context, a *app, o createOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	f := &follower{a: a, stages: a.ui.Stages()}
	defer f.stages.Close()
	stream, err := c.VMs.Create(ctx, connect.NewRequest(o.request))
	made, err := f.follow(stream, err)
	if err != nil {
		return err
	}
	f.stages.Close()
	switch {
	case made.vm == nil && o.dryRun:
		a.ui.Note("all is well; nothing was made")
		return nil
	case made.vm == nil:
		return incomplete("the VM")
	case ctx.Err() != nil:
		return errs.New(errs.Cancelled, "cancelled", "interrupted").WithHint("%q was made all the same.  away: banger rm -f %s", made.vm.GetName(), made.vm.GetName())
	case a.ui.JSON:
		return a.ui.JSONValue(viewVM(made.vm))
	case o.dryRun:
		return a.ui.Fields(vmFields(made.vm))
	}
	return a.ui.Print("%s", made.vm.GetName())
}
