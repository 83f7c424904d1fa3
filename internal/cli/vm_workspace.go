package cli

import (
	"context"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/errs"
)

// prepareWorkspace copies a directory into a VM, showing its stages.
func prepareWorkspace(ctx context.Context, c *apiclient.Client, f *follower, req *bangerv1.PrepareWorkspaceRequest) (*bangerv1.WorkspaceResult, error) {
	stream, err := c.Workspaces.Prepare(ctx, connect.NewRequest(req))
	o, err := f.follow(stream, err)
	if err != nil {
		return nil, err
	}
	if o.workspace == nil {
		return nil, incomplete("the workspace")
	}
	if !f.lines {
		for _, w := range o.workspace.GetWarnings() {
			f.a.ui.Warn("%s", w)
		}
	}
	return o.workspace, nil
}

// workspaceOptions are those of vm workspace prepare.
type workspaceOptions struct {
	vm, path, guestPath string
	dryRun              bool
}

func newWorkspacePrepare(a *app) *cobra.Command {
	var o workspaceOptions
	cmd := &cobra.Command{
		Use:     "prepare NAME [PATH]",
		Short:   "Copy a directory, a git repository as it stands, into a VM",
		Example: "banger vm workspace prepare web .\nbanger vm workspace prepare web ../api --guest-path /root/api",
		Args:    args(1, 2, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.path = args[0], a.p.Dir
			if len(args) > 1 {
				o.path = args[1]
			}
			return runWorkspacePrepare(cmd.Context(), a, o)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return completeVMs(a, cmd, args, "running")
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	cmd.Flags().StringVar(&o.guestPath, "guest-path", "", "copy it to this `DIR` of the guest (default /root/repo)")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "list what would be copied, copy nothing")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: workspaceView{}})
}

func runWorkspacePrepare(ctx context.Context, a *app, o workspaceOptions) error {
	if !filepath.IsAbs(o.path) {
		o.path = filepath.Join(a.p.Dir, o.path)
	}
	if st, err := os.Stat(o.path); err != nil || !st.IsDir() {
		return errs.New(errs.Invalid, "path_not_found", "no directory %q here", o.path).WithHint("banger vm workspace prepare %s .", o.vm)
	}
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	f := &follower{a: a, stages: a.ui.Stages()}
	defer f.stages.Close()
	ws, err := prepareWorkspace(ctx, c, f, &bangerv1.PrepareWorkspaceRequest{Vm: o.vm, Path: o.path, GuestPath: o.guestPath, DryRun: o.dryRun})
	if err != nil {
		return err
	}
	f.stages.Close()
	if a.ui.JSON {
		return a.ui.JSONValue(viewWorkspace(ws))
	}
	for _, p := range ws.GetPaths() {
		if err := a.ui.Print("%s", p); err != nil {
			return err
		}
	}
	verb := "copied to"
	if o.dryRun {
		verb = "would be copied to"
	}
	a.ui.Note("%s, %s %s %s", count(ws.GetFiles(), "file"), uiBytes(ws.GetBytes()), verb, ws.GetGuestPath())
	return nil
}
