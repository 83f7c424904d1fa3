package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
)

// templateView is a template.
type templateView struct {
	Key     string `json:"key" doc:"its address"`
	Level   string `json:"level" doc:"agent or settled"`
	Image   string `json:"image" doc:"what it was booted from"`
	Kernel  string `json:"kernel" doc:"what it booted"`
	CPUs    uint32 `json:"cpus" doc:"virtual CPUs"`
	Memory  int64  `json:"memory" doc:"bytes of RAM"`
	Size    int64  `json:"size" doc:"bytes of the host's disk"`
	Created string `json:"created,omitempty" doc:"RFC 3339, UTC"`
	Used    string `json:"used,omitempty" doc:"when it was last cloned; RFC 3339, UTC"`
	Clones  uint32 `json:"clones" doc:"VMs that run on it now"`
}

func newTemplateList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List templates",
		Example: "banger template list\nbanger template list --json | jq '.[].size'",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTemplateList(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeArray, output: templateView{}})
}

func runTemplateList(ctx context.Context, a *app) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.Templates.List(ctx, connect.NewRequest(&bangerv1.ListTemplatesRequest{}))
	if err != nil {
		return err
	}
	views, rows := []templateView{}, [][]string{}
	for _, t := range resp.Msg.GetTemplates() {
		views = append(views, templateView{Key: t.GetKey(), Level: t.GetLevel(), Image: t.GetImage(), Kernel: t.GetKernel(), CPUs: t.GetCpus(), Memory: t.GetMemory(),
			Size: t.GetSize(), Created: stamp(t.GetCreated()), Used: stamp(t.GetUsed()), Clones: t.GetClones()})
		used := "never"
		if d, ok := since(t.GetUsed()); ok {
			used = ui.Age(d) + " ago"
		}
		rows = append(rows, []string{t.GetKey(), t.GetLevel(), t.GetImage(), t.GetKernel(), fmt.Sprint(t.GetCpus()), ui.Bytes(t.GetMemory()), ui.Bytes(t.GetSize()), used, fmt.Sprint(t.GetClones())})
	}
	return showList(a, views, rows, []ui.Column{{Title: "KEY"}, {Title: "LEVEL"}, {Title: "IMAGE"}, {Title: "KERNEL"}, {Title: "CPU", Align: ui.Right},
		{Title: "MEMORY", Align: ui.Right}, {Title: "SIZE", Align: ui.Right}, {Title: "USED"}, {Title: "CLONES", Align: ui.Right}})
}

// deletedView is what template delete prints.
type deletedView struct {
	Keys  []string `json:"keys" doc:"what was deleted"`
	Freed int64    `json:"freed" doc:"bytes of the host's disk"`
}

func newTemplateDelete(a *app) *cobra.Command {
	var all, yes bool
	cmd := &cobra.Command{
		Use:     "delete KEY…",
		Aliases: []string{"rm"},
		Short:   "Delete templates; they are made again when needed",
		Example: "banger template delete --all -y\nbanger template delete 3f2a",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return usage("--all and keys contradict each other").WithHint("banger template delete --all")
			case !all && len(args) == 0:
				return usage("%s needs a key, or --all", cmd.CommandPath()).WithHint("banger template list")
			}
			return runTemplateDelete(cmd.Context(), a, args, all, yes)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all there are")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: deletedView{}})
}

func runTemplateDelete(ctx context.Context, a *app, keys []string, all, yes bool) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	if all && !yes && !a.ui.JSON {
		if err := a.ui.Confirm(ctx, "delete all templates? The next start of each image is a cold one."); err != nil {
			return err
		}
	}
	resp, err := c.Templates.Delete(ctx, connect.NewRequest(&bangerv1.DeleteTemplatesRequest{Keys: keys, All: all}))
	if err != nil {
		return err
	}
	if a.ui.JSON {
		return a.ui.JSONValue(deletedView{Keys: orEmpty(resp.Msg.GetKeys()), Freed: resp.Msg.GetFreed()})
	}
	for _, k := range resp.Msg.GetKeys() {
		if err := a.ui.Print("%s", k); err != nil {
			return err
		}
	}
	a.ui.Note("%s, %s freed", count(len(resp.Msg.GetKeys()), "template"), ui.Bytes(resp.Msg.GetFreed()))
	return nil
}
