package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/banger-dev/banger/internal/errs"
)

// newRoot builds the whole tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:               "banger",
		Short:             "Linux machines of your own, one command each",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.ui.Quiet && a.ui.Verbose {
				return usage("-q and -v contradict each other")
			}
			return nil
		},
	}
	fs := root.PersistentFlags()
	fs.BoolVar(&a.ui.JSON, "json", false, "print JSON")
	fs.BoolVarP(&a.ui.Quiet, "quiet", "q", false, "say nothing but results and errors")
	fs.BoolVarP(&a.ui.Verbose, "verbose", "v", false, "say what each step does")
	fs.BoolVar(&a.debug, "debug", false, "show the calls of the API")
	for _, n := range []string{"json", "quiet", "verbose", "debug"} {
		group(fs, "Everywhere", n)
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return flagError(cmd, err) })
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { _ = a.ui.Print("%s", strings.TrimRight(helpText(cmd), "\n")) })
	root.SetHelpCommand(newHelp(a))
	addCommands(a, root)
	noun(root)
	return root
}

func addCommands(a *app, root *cobra.Command) {
	vm := noun(&cobra.Command{Use: "vm", Short: "Make, use and throw away VMs"})
	vm.AddCommand(vmCommands(a)...)
	root.AddCommand(vm)
	root.AddCommand(nounCommands(a)...)
	root.AddCommand(shortForms(a)...)
	root.AddCommand(newVersion(a), newExitStatusTopic())
}

// noun makes a command that only has verbs beneath it: without one it shows
// its help, with an unknown one it fails with a suggestion.
func noun(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		what := "command"
		if cmd.HasParent() {
			what = cmd.CommandPath() + " verb"
		}
		e := errs.New(errs.Invalid, "unknown_command", "no %s %q", what, args[0])
		cmd.SuggestionsMinimumDistance = 2
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			return e.WithHint("did you mean: %s %s", cmd.CommandPath(), s[0])
		}
		return e.WithHint("%s --help", cmd.CommandPath())
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

func usage(format string, args ...any) *errs.Error {
	return errs.New(errs.Invalid, "usage", format, args...)
}

// flagError makes pflag's errors ours, with the nearest flag as suggestion.
func flagError(cmd *cobra.Command, err error) error {
	msg := strings.ReplaceAll(err.Error(), "\n", " ")
	e := usage("%s", msg)
	if name, ok := strings.CutPrefix(msg, "unknown flag: --"); ok {
		if near := nearestFlag(cmd, name); near != "" {
			return e.WithHint("did you mean --%s?  (%s --help)", near, cmd.CommandPath())
		}
	}
	return e.WithHint("%s --help", cmd.CommandPath())
}

func nearestFlag(cmd *cobra.Command, name string) string {
	best, dist := "", 3
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := distance(name, f.Name); d < dist && !f.Hidden {
			best, dist = f.Name, d
		}
	})
	return best
}

// distance is how many letters have to change to make b of a; two neighbours
// that changed places count once.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// args checks how many names a verb got.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		switch {
		case len(got) < least:
			return usage("%s needs %s", cmd.CommandPath(), what).WithHint("%s", cmd.UseLine())
		case most >= 0 && len(got) > most:
			return usage("%s takes no %q", cmd.CommandPath(), got[most]).WithHint("%s", cmd.UseLine())
		}
		return nil
	}
}
