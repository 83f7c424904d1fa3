package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
)

// kernelView is a kernel.
type kernelView struct {
	Name    string `json:"name" doc:"what to say to --kernel"`
	Release string `json:"release,omitempty" doc:"as uname -r says it"`
	Digest  string `json:"digest,omitempty" doc:"its address"`
	Local   bool   `json:"local" doc:"whether it is here; otherwise it is fetched on first use"`
	Size    int64  `json:"size" doc:"bytes, modules included"`
	Source  string `json:"source,omitempty" doc:"where it comes from"`
	Created string `json:"created,omitempty" doc:"RFC 3339, UTC"`
	Path    string `json:"path,omitempty" doc:"on the host"`
}

func viewKernel(k *bangerv1.Kernel) kernelView {
	return kernelView{Name: k.GetName(), Release: k.GetRelease(), Digest: k.GetDigest(), Local: k.GetLocal(), Size: k.GetSize(), Source: k.GetSource(), Created: stamp(k.GetCreated()), Path: k.GetPath()}
}

func newKernelList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List kernels",
		Example: "banger kernel list\nbanger kernel list --json",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runKernelList(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeArray, output: kernelView{}})
}

func runKernelList(ctx context.Context, a *app) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.Kernels.List(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{}))
	if err != nil {
		return err
	}
	views, rows := []kernelView{}, [][]string{}
	for _, k := range resp.Msg.GetKernels() {
		views = append(views, viewKernel(k))
		here := "here"
		if !k.GetLocal() {
			here = "on first use"
		}
		rows = append(rows, []string{k.GetName(), k.GetRelease(), sizeOrNone(k.GetSize()), here, shortDigest(k.GetDigest()), k.GetSource()})
	}
	return showList(a, views, rows, []ui.Column{{Title: "NAME"}, {Title: "RELEASE"}, {Title: "SIZE", Align: ui.Right}, {Title: "WHERE"}, {Title: "DIGEST"}, {Title: "SOURCE"}})
}

func newKernelShow(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show KERNEL",
		Short:   "Show everything of a kernel",
		Example: "banger kernel show generic-6.12\nbanger kernel show generic-6.12 --json",
		Args:    args(1, 1, "the name of a kernel"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runKernelShow(cmd.Context(), a, args[0])
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeKernels(a, cmd)
		},
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: kernelView{}})
}

func runKernelShow(ctx context.Context, a *app, name string) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.Kernels.Get(ctx, connect.NewRequest(&bangerv1.GetKernelRequest{Kernel: name}))
	if err != nil {
		return err
	}
	k := resp.Msg
	if a.ui.JSON {
		return a.ui.JSONValue(viewKernel(k))
	}
	where := k.GetPath()
	if !k.GetLocal() {
		where = "not here yet: banger kernel pull " + k.GetName()
	}
	return a.ui.Fields([][2]string{{"name", k.GetName()}, {"release", k.GetRelease()}, {"digest", k.GetDigest()}, {"size", sizeOrNone(k.GetSize())}, {"source", k.GetSource()}, {"where", where}})
}

func newKernelPull(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "pull KERNEL",
		Short:   "Fetch a kernel now",
		Example: "banger kernel pull generic-6.12\nbanger kernel pull generic-6.12 --force",
		Args:    args(1, 1, "the name of a kernel"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runKernelPull(cmd.Context(), a, args[0], force)
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeKernels(a, cmd)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "anew, even where it is here")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: kernelView{}})
}

func runKernelPull(ctx context.Context, a *app, name string, force bool) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	f := &follower{a: a, stages: a.ui.Stages()}
	defer f.stages.Close()
	stream, err := c.Kernels.Pull(ctx, connect.NewRequest(&bangerv1.PullKernelRequest{Kernel: name, Force: force}))
	o, err := f.follow(stream, err)
	if err != nil {
		return err
	}
	f.stages.Close()
	switch {
	case o.kernel == nil:
		return incomplete("the kernel")
	case a.ui.JSON:
		return a.ui.JSONValue(viewKernel(o.kernel))
	}
	return a.ui.Print("%s", o.kernel.GetRelease())
}

func completeKernels(a *app, cmd *cobra.Command) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	ctx, cancel := context.WithTimeout(cmd.Context(), completionBudget)
	defer cancel()
	c, err := a.dialRunning(ctx)
	if err != nil {
		return nil, none
	}
	resp, err := c.Kernels.List(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{}))
	if err != nil {
		return nil, none
	}
	var out []string
	for _, k := range resp.Msg.GetKernels() {
		out = append(out, k.GetName()+"\t"+k.GetRelease())
	}
	return out, none
}
