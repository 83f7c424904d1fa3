package cli

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
)

// completionBudget is how long a completion may take.
const completionBudget = 300 * time.Millisecond

// completeVMs gives the names of VMs not yet in args, described by state. With
// states only those; it never starts a daemon.
func completeVMs(a *app, cmd *cobra.Command, args []string, states ...string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	ctx, cancel := context.WithTimeout(cmd.Context(), completionBudget)
	defer cancel()
	c, err := a.dialRunning(ctx)
	if err != nil {
		return nil, none
	}
	resp, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{All: true}))
	if err != nil {
		return nil, none
	}
	var out []string
	for _, v := range resp.Msg.GetVms() {
		st := stateName(v.GetState())
		if slices.Contains(args, v.GetName()) || (len(states) > 0 && !slices.Contains(states, st)) {
			continue
		}
		out = append(out, v.GetName()+"\t"+st+", "+v.GetSpec().GetImage())
	}
	return out, none
}

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// firstVM completes one VM and nothing after it.
func firstVM(a *app, states ...string) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return completeVMs(a, cmd, args, states...)
	}
}

// manyVMs completes any number of VMs.
func manyVMs(a *app, states ...string) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return completeVMs(a, cmd, args, states...)
	}
}

// completeSpec completes the values of run's and create's flags.
func completeSpec(a *app, cmd *cobra.Command) {
	must(cmd.RegisterFlagCompletionFunc("image", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return completeImages(a, cmd)
	}))
	must(cmd.RegisterFlagCompletionFunc("kernel", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return completeKernels(a, cmd)
	}))
	for name, values := range map[string][]string{"wait": {"agent\tcommands can run", "system\tsystemd has settled"}, "network": {"user\tthe world, not this host", "none\tnothing"}} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
	}
}

// must is for what only a defect of this package can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
