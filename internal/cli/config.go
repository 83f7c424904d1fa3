package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/config"
	"github.com/banger-dev/banger/internal/errs"
)

// settingView is one setting.
type settingView struct {
	Key    string `json:"key" doc:"as config.toml has it; tables are dotted"`
	Value  string `json:"value" doc:"what holds now"`
	Origin string `json:"origin" doc:"default, file or environment"`
	Doc    string `json:"doc,omitempty" doc:"what it means"`
}

// configView is what config show prints.
type configView struct {
	Path   string        `json:"path" doc:"of config.toml"`
	Values []settingView `json:"values" doc:"every setting"`
}

func newConfigShow(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show every setting, its value and where it comes from",
		Example: "banger config show\nbanger config show --json | jq '.values[] | select(.origin==\"file\")'",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runConfigShow(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: configView{}})
}

func runConfigShow(ctx context.Context, a *app) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.System.Config(ctx, connect.NewRequest(&bangerv1.ConfigRequest{}))
	if err != nil {
		return err
	}
	v := configView{Path: resp.Msg.GetPath(), Values: []settingView{}}
	rows := [][]string{}
	for _, s := range resp.Msg.GetValues() {
		v.Values = append(v.Values, settingView{Key: s.GetKey(), Value: s.GetValue(), Origin: s.GetOrigin(), Doc: s.GetDoc()})
		rows = append(rows, []string{s.GetKey(), s.GetValue(), s.GetOrigin(), s.GetDoc()})
	}
	if a.ui.JSON {
		return a.ui.JSONValue(v)
	}
	a.ui.Note("%s", v.Path)
	return a.ui.Table([]ui.Column{{Title: "KEY"}, {Title: "VALUE"}, {Title: "FROM"}, {Title: "MEANING"}}, rows)
}

// pathView is what config path prints.
type pathView struct {
	Path string `json:"path" doc:"of config.toml"`
}

func newConfigPath(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "path",
		Short:   "Say where config.toml is",
		Example: "banger config path\nless $(banger config path)",
		Args:    args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			l, err := a.layout()
			if err != nil {
				return err
			}
			if a.ui.JSON {
				return a.ui.JSONValue(pathView{l.ConfigFile()})
			}
			return a.ui.Print("%s", l.ConfigFile())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: pathView{}, local: true})
}

func newConfigEdit(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "edit",
		Short:   "Open config.toml in $VISUAL or $EDITOR",
		Example: "banger config edit\nEDITOR=nano banger config edit",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runConfigEdit(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectOther, shape: shapeNone, local: true})
}

const configHead = `# banger's settings; every key is optional, banger config show lists them all.
`

func runConfigEdit(ctx context.Context, a *app) error {
	l, err := a.layout()
	if err != nil {
		return err
	}
	path := l.ConfigFile()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return errs.Wrap(err, errs.Denied, "config_dir", "cannot make the settings' directory")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(configHead)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil && !os.IsExist(err) {
		return errs.Wrap(err, errs.Denied, "config_write", "cannot write the settings")
	}
	editor := a.p.Getenv("VISUAL")
	if editor == "" {
		editor = a.p.Getenv("EDITOR")
	}
	if editor == "" {
		editor = "vi"
	}
	words := strings.Fields(editor) // EDITOR="code --wait"
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], path)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.p.In, a.p.Out, a.p.Err
	if err := cmd.Run(); err != nil {
		return errs.New(errs.Unavailable, "editor_failed", "editor %q", editor).Because(err).WithHint("EDITOR=nano banger config edit")
	}
	return a.checkConfig(path)
}

// checkConfig reads the file as the daemon will, so that a slip shows now.
func (a *app) checkConfig(path string) error {
	l, err := a.layout()
	if err != nil {
		return err
	}
	if _, err := config.Load(path, l.SSHKey()); err != nil {
		return err
	}
	a.ui.Note("takes effect when the daemon starts again: banger daemon stop")
	return nil
}
