package cli

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
)

// imageView is an image.
type imageView struct {
	Name     string        `json:"name" doc:"what to say to --image"`
	Names    []string      `json:"names" doc:"all its names"`
	Digest   string        `json:"digest,omitempty" doc:"its address"`
	Local    bool          `json:"local" doc:"whether it is here; otherwise it is made or fetched on first use"`
	Size     int64         `json:"size" doc:"bytes of the filesystem"`
	Used     int64         `json:"used" doc:"bytes of file content"`
	OS       string        `json:"os,omitempty" doc:"the distribution"`
	Init     string        `json:"init,omitempty" doc:"its own init"`
	Kernel   string        `json:"kernel,omitempty" doc:"the kernel it boots"`
	Source   string        `json:"source,omitempty" doc:"where it comes from"`
	Created  string        `json:"created,omitempty" doc:"RFC 3339, UTC"`
	Path     string        `json:"path,omitempty" doc:"on the host"`
	Notes    []string      `json:"notes" doc:"worth knowing"`
	Packages []packageView `json:"packages,omitempty" doc:"what is installed in it (show)"`
}

type packageView struct {
	Name    string `json:"name" doc:"of the package"`
	Version string `json:"version" doc:"of the package"`
}

func viewImage(i *bangerv1.Image) imageView {
	v := imageView{
		Name: i.GetName(), Names: orEmpty(i.GetNames()), Digest: i.GetDigest(), Local: i.GetLocal(), Size: i.GetSize(), Used: i.GetUsed(), OS: i.GetOs(),
		Init: i.GetInit(), Kernel: i.GetKernel(), Source: i.GetSource(), Created: stamp(i.GetCreated()), Path: i.GetPath(), Notes: orEmpty(i.GetNotes()),
	}
	for _, p := range i.GetPackages() {
		v.Packages = append(v.Packages, packageView{p.GetName(), p.GetVersion()})
	}
	return v
}

func newImageList(a *app, use string) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     use,
		Short:   "List images",
		Example: "banger images\nbanger image list --all --json",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runImageList(cmd.Context(), a, all)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	if use == "list" {
		cmd.Aliases = []string{"ls"}
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those of the catalog that are not here as well")
	return a.declare(cmd, verb{effect: effectRead, shape: shapeArray, output: imageView{}})
}

func runImageList(ctx context.Context, a *app, all bool) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.Images.List(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{All: all}))
	if err != nil {
		return err
	}
	views, rows := []imageView{}, [][]string{}
	for _, i := range resp.Msg.GetImages() {
		views = append(views, viewImage(i))
		here, made := "here", ""
		if !i.GetLocal() {
			here = "on first use"
		}
		if d, ok := since(i.GetCreated()); ok {
			made = ui.Age(d) + " ago"
		}
		rows = append(rows, []string{i.GetName(), i.GetOs(), sizeOrNone(i.GetSize()), here, made, shortDigest(i.GetDigest()), i.GetSource()})
	}
	return showList(a, views, rows, []ui.Column{{Title: "NAME"}, {Title: "OS"}, {Title: "SIZE", Align: ui.Right}, {Title: "WHERE"}, {Title: "MADE"}, {Title: "DIGEST"}, {Title: "SOURCE"}})
}

// showList shows a list as JSON, as names only, or as a table; a row begins
// with its name.
func showList[V any](a *app, views []V, rows [][]string, cols []ui.Column) error {
	switch {
	case a.ui.JSON:
		return a.ui.JSONValue(orEmpty(views))
	case a.ui.Quiet:
		for _, r := range rows {
			if err := a.ui.Print("%s", r[0]); err != nil {
				return err
			}
		}
		return nil
	}
	return a.ui.Table(cols, rows)
}

func sizeOrNone(n int64) string {
	if n == 0 {
		return ""
	}
	return ui.Bytes(n)
}

func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok {
		hex = d
	}
	return hex[:min(len(hex), 12)]
}

func newImageShow(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show IMAGE",
		Short:   "Show everything of an image",
		Example: "banger image show debian-bookworm\nbanger image show debian-bookworm --json | jq '.packages | length'",
		Args:    args(1, 1, "the name of an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImageShow(cmd.Context(), a, args[0])
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeImages(a, cmd)
		},
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: imageView{}})
}

func runImageShow(ctx context.Context, a *app, name string) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.Images.Get(ctx, connect.NewRequest(&bangerv1.GetImageRequest{Image: name}))
	if err != nil {
		return err
	}
	i := resp.Msg
	if a.ui.JSON {
		return a.ui.JSONValue(viewImage(i))
	}
	created := ""
	if d, ok := since(i.GetCreated()); ok {
		created = ui.Age(d) + " ago"
	}
	packages := ""
	if n := len(i.GetPackages()); n > 0 {
		packages = count(n, "package") + " (--json lists them)"
	}
	where := i.GetPath()
	if !i.GetLocal() {
		where = "not here yet: banger pull " + i.GetName()
	}
	fields := [][2]string{{"name", strings.Join(i.GetNames(), " ")}, {"digest", i.GetDigest()}, {"os", i.GetOs()}, {"init", i.GetInit()}, {"kernel", i.GetKernel()},
		{"size", ui.Bytes(i.GetSize()) + ", " + ui.Bytes(i.GetUsed()) + " of files"}, {"made", created}, {"source", i.GetSource()}, {"packages", packages}, {"where", where}}
	for _, n := range i.GetNotes() {
		fields = append(fields, [2]string{"note", n})
	}
	return a.ui.Fields(fields)
}

func newImagePull(a *app, use string) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     use + " IMAGE",
		Short:   "Fetch or make an image now",
		Example: "banger pull debian-bookworm\nbanger image pull debian-bookworm --force",
		Args:    args(1, 1, "the name of an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImagePull(cmd.Context(), a, args[0], force)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeImages(a, cmd)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "anew, even where it is here")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: imageView{}})
}

func runImagePull(ctx context.Context, a *app, name string, force bool) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	f := &follower{a: a, stages: a.ui.Stages()}
	defer f.stages.Close()
	stream, err := c.Images.Pull(ctx, connect.NewRequest(&bangerv1.PullImageRequest{Image: name, Force: force}))
	o, err := f.follow(stream, err)
	if err != nil {
		return err
	}
	f.stages.Close()
	switch {
	case o.image == nil:
		return incomplete("the image")
	case a.ui.JSON:
		return a.ui.JSONValue(viewImage(o.image))
	}
	for _, n := range o.image.GetNotes() {
		a.ui.Note("%s", n)
	}
	return a.ui.Print("%s", o.image.GetDigest())
}

func completeImages(a *app, cmd *cobra.Command) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	ctx, cancel := context.WithTimeout(cmd.Context(), completionBudget)
	defer cancel()
	c, err := a.dialRunning(ctx)
	if err != nil {
		return nil, none
	}
	resp, err := c.Images.List(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{All: true}))
	if err != nil {
		return nil, none
	}
	var out []string
	for _, i := range resp.Msg.GetImages() {
		about := i.GetOs()
		if !i.GetLocal() {
			about += " (on first use)"
		}
		out = append(out, i.GetName()+"\t"+strings.TrimSpace(about))
	}
	return out, none
}
