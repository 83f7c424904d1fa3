package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
)

func newSystemInfo(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "info",
		Short:   "Show this installation: versions, places, what runs",
		Example: "banger system info\nbanger system info --json | jq -r .data_dir",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDaemonStart(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: daemonView{}})
}

// gcView is what system gc prints.
type gcView struct {
	Found   []string `json:"found" doc:"processes and files of banger's that no VM owns"`
	Removed []string `json:"removed" doc:"what of it was removed"`
}

func newSystemGC(a *app) *cobra.Command {
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:     "gc",
		Short:   "Find what no VM owns any more, and remove it with --force",
		Example: "banger system gc\nbanger system gc --force",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if force && dryRun {
				return usage("--force and --dry-run contradict each other")
			}
			return runSystemGC(cmd.Context(), a, force)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove it")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what was found (the default)")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: gcView{}})
}

func runSystemGC(ctx context.Context, a *app, force bool) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.System.GC(ctx, connect.NewRequest(&bangerv1.GCRequest{DryRun: !force}))
	if err != nil {
		return err
	}
	v := gcView{Found: orEmpty(resp.Msg.GetFound()), Removed: orEmpty(resp.Msg.GetRemoved())}
	if a.ui.JSON {
		return a.ui.JSONValue(v)
	}
	list, what := v.Found, "found"
	if force {
		list, what = v.Removed, "removed"
	}
	for _, l := range list {
		if err := a.ui.Print("%s", l); err != nil {
			return err
		}
	}
	a.ui.Note("%s %s", count(len(list), "leftover"), what)
	if !force && len(list) > 0 {
		a.ui.Note("banger system gc --force removes them")
	}
	return nil
}

// eventView is something that happened.
type eventView struct {
	Cursor  uint64            `json:"cursor" doc:"its place; --after goes on behind it"`
	At      string            `json:"at" doc:"RFC 3339, UTC"`
	Kind    string            `json:"kind" doc:"vm.created, vm.started, vm.exited, …"`
	VM      string            `json:"vm,omitempty" doc:"id of the VM"`
	Name    string            `json:"name,omitempty" doc:"of the VM"`
	Message string            `json:"message,omitempty" doc:"for people"`
	Data    map[string]string `json:"data,omitempty" doc:"details by kind"`
}

// eventsOptions are those of events.
type eventsOptions struct {
	after          uint64
	follow, newest bool
}

func newEvents(a *app) *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show everything that happened",
		Long: `Show everything that happened, oldest first. Each event has a cursor; with
--after the next call goes on behind it, without loss or repeat.`,
		Example: "banger events -f --json\nbanger events --after 1042",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.newest && cmd.Flags().Changed("after") {
				return usage("--after and --from-now contradict each other")
			}
			if o.newest && !o.follow {
				return usage("--from-now shows nothing without --follow").WithHint("banger events -f --from-now")
			}
			return runEvents(cmd.Context(), a, o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().Uint64Var(&o.after, "after", 0, "only what came after this `CURSOR`")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().BoolVar(&o.newest, "from-now", false, "leave out what has happened already")
	return a.declare(cmd, verb{effect: effectRead, shape: shapeLines, output: eventView{}})
}

func runEvents(ctx context.Context, a *app, o eventsOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	return followEvents(ctx, a, c, o)
}
