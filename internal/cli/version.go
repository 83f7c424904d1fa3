package cli

import (
	"github.com/spf13/cobra"

	"github.com/banger-dev/banger/internal/buildinfo"
)

// versionView is what version prints.
type versionView struct {
	Version string `json:"version" doc:"of this banger"`
	Commit  string `json:"commit,omitempty" doc:"it was built from"`
	Date    string `json:"date,omitempty" doc:"of that commit; RFC 3339"`
	Go      string `json:"go" doc:"the toolchain"`
	OS      string `json:"os" doc:"built for"`
	Arch    string `json:"arch" doc:"built for"`
	API     uint32 `json:"api" doc:"number of the contract it speaks"`
}

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Say which banger this is",
		Example: "banger version\nbanger version --json | jq -r .commit",
		Args:    args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			return runVersion(a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: versionView{}, local: true})
}

func runVersion(a *app) error {
	i := buildinfo.Get()
	if a.ui.JSON {
		return a.ui.JSONValue(versionView(i))
	}
	line := "banger " + i.Version
	if i.Commit != "" {
		line += " (" + i.Commit + ")"
	}
	return a.ui.Print("%s, %s/%s, %s", line, i.OS, i.Arch, i.Go)
}

func newCompletion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a shell's completion script",
		Example: `source <(banger completion bash)
banger completion zsh > "${fpath[1]}/_banger"`,
		Args: args(1, 1, "a shell: bash, zsh or fish"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.ui.Out(), true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.ui.Out())
			case "fish":
				return cmd.Root().GenFishCompletion(a.ui.Out(), true)
			}
			return usage("no completion for %q", args[0]).WithHint("banger completion bash, zsh or fish")
		},
		ValidArgsFunction: cobra.FixedCompletions([]string{"bash", "zsh", "fish"}, cobra.ShellCompDirectiveNoFileComp),
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeRaw, local: true})
}
