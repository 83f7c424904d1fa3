package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
)

// execOptions are those of vm exec and vm shell.
type execOptions struct {
	session sessionFlags
	vm      string
	argv    []string
}

func newVMExec(a *app) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec NAME [--] CMD…",
		Short: "Run a command in a VM",
		Long: `Run a command in a VM.

It runs in the prepared workspace where there is one, else in /root. Arguments
arrive exactly as typed; standard input, output and error stay apart unless
both ends are terminals. The status is the command's.`,
		Example: "banger exec web -- make test\nbanger exec web ls -la /etc\ntar c . | banger exec web --cwd /tmp -- tar x",
		Args:    args(1, -1, "the name of a VM and a command"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.parse(a, cmd, args); err != nil {
				return err
			}
			return runVMExec(cmd.Context(), a, o)
		},
		ValidArgsFunction: firstVM(a, "running"),
	}
	cmd.Flags().SetInterspersed(false)
	o.session.add(cmd.Flags())
	return a.declare(cmd, verb{effect: effectOther, shape: shapeLines, output: runLine{}, passes: true})
}

// parse reads NAME, flags that follow it, and the command, which begins at --
// or at the first word that is no flag: everything from there on is the
// command's own.
func (o *execOptions) parse(a *app, cmd *cobra.Command, args []string) error {
	if cmd.ArgsLenAtDash() == 0 {
		return usage("%s needs the name of a VM before --", cmd.CommandPath()).WithHint("banger ps lists them")
	}
	o.vm = args[0]
	rest := args[1:]
	if cmd.ArgsLenAtDash() < 0 {
		if err := cmd.Flags().Parse(rest); err != nil {
			return flagError(cmd, err)
		}
		rest = cmd.Flags().Args()
	}
	o.argv = rest
	switch {
	case len(rest) == 0:
		return usage("%s needs a command", cmd.CommandPath()).WithHint("banger exec %s -- uname -a, or: banger shell %s", o.vm, o.vm)
	case rest[0] == "":
		return usage("the command is empty")
	}
	return o.session.check(a)
}

// runVMExec runs a command, or the login shell where argv is empty.
func runVMExec(ctx context.Context, a *app, o execOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	// the daemon resolves the reference; one call less is 1 ms less
	return runSession(ctx, a, c, &o.session, command{vm: &bangerv1.VM{Id: o.vm, Name: o.vm}, argv: o.argv})
}

func newVMShell(a *app) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:     "shell NAME",
		Short:   "Enter a VM",
		Long:    "Enter a VM: root's login shell, in the prepared workspace where there is one.\nLeaving it, or losing the terminal, leaves the VM running.",
		Example: "banger shell web\necho 'uname -r' | banger shell web",
		Args:    args(1, 1, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm = args[0]
			if err := o.session.check(a); err != nil {
				return err
			}
			return runVMExec(cmd.Context(), a, o)
		},
		ValidArgsFunction: firstVM(a, "running"),
	}
	o.session.add(cmd.Flags())
	return a.declare(cmd, verb{effect: effectOther, shape: shapeLines, output: runLine{}, passes: true})
}

func joinNames(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = `"` + n + `"`
	}
	if len(q) < 2 {
		return strings.Join(q, "")
	}
	return strings.Join(q[:len(q)-1], ", ") + " and " + q[len(q)-1]
}
