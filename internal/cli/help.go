package cli

import (
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// rootHelp is one screen: the eight things that people do.
const rootHelp = `banger gives you a Linux machine of your own, a microVM, in one command.

  banger run                       a shell in a new machine
  banger run . -- make test        this repository in one, and a command
  banger run --rm -- uname -a      a machine for one command, gone after it
  banger ps                        what is there
  banger exec web -- ls -la        a command in a machine; to enter it: shell
  banger cp web:/root/out.txt .    files out of it, or into it
  banger stop web; banger rm web   stop it, throw it away
  banger doctor                    what this host can do, what would help

More:
  vm                               verbs of machines: create, start, set, wait
  image, kernel, template          what machines are made of
  daemon, system, config, events   banger itself
  schema, version, completion      for programs and shells

banger NOUN --help lists its verbs, banger NOUN VERB --help has examples of one,
banger help exit-status says what the statuses mean.
`

// helpText is the help of a command.
func helpText(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return rootHelp
	}
	var b strings.Builder
	switch {
	case cmd.Long != "":
		b.WriteString(strings.TrimSpace(cmd.Long) + "\n")
	default:
		b.WriteString(cmd.Short + ".\n")
	}
	if cmd.Run == nil && cmd.RunE == nil {
		return b.String() // a topic
	}
	if !cmd.HasSubCommands() {
		b.WriteString("\nUsage:\n  " + cmd.UseLine() + "\n")
		if len(cmd.Aliases) > 0 {
			b.WriteString("  also: " + strings.Join(cmd.Aliases, ", ") + "\n")
		}
	}
	if cmd.Example != "" {
		b.WriteString("\nExamples:\n" + indent(cmd.Example) + "\n")
	}
	if cmd.HasSubCommands() {
		b.WriteString("\nVerbs:\n")
		w := 0
		for _, c := range visible(cmd) {
			w = max(w, len(c.Name()))
		}
		for _, c := range visible(cmd) {
			fmt.Fprintf(&b, "  %-*s  %s\n", w, c.Name(), c.Short)
		}
		fmt.Fprintf(&b, "\n%s VERB --help shows one with examples.\n", cmd.CommandPath())
		return b.String()
	}
	for _, g := range flagGroups(cmd) {
		b.WriteString("\n" + g.title + ":\n" + g.usages())
	}
	return b.String()
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ")
}

// visible is what help lists beneath a command.
func visible(cmd *cobra.Command) []*cobra.Command {
	var out []*cobra.Command
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			out = append(out, c)
		}
	}
	return out
}

type flagGroup struct {
	title string
	flags []*pflag.Flag
}

// flagGroups orders a command's flags under their headings.
func flagGroups(cmd *cobra.Command) []flagGroup {
	cmd.InitDefaultHelpFlag()
	byTitle := map[string]*flagGroup{}
	var order []string
	add := func(title string, f *pflag.Flag) {
		if byTitle[title] == nil {
			byTitle[title] = &flagGroup{title: title}
			order = append(order, title)
		}
		byTitle[title].flags = append(byTitle[title].flags, f)
	}
	visit := func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		title := "Flags"
		if t := f.Annotations[groupKey]; len(t) > 0 {
			title = t[0]
		}
		add(title, f)
	}
	cmd.LocalFlags().VisitAll(visit)
	cmd.InheritedFlags().VisitAll(visit)
	rank := func(t string) int {
		switch t {
		case "Flags":
			return 0
		case "Everywhere":
			return 2
		}
		return 1
	}
	sort.SliceStable(order, func(i, j int) bool { return rank(order[i]) < rank(order[j]) })
	out := make([]flagGroup, 0, len(order))
	for _, t := range order {
		out = append(out, *byTitle[t])
	}
	return out
}

// usages writes a group's flags in two columns.
func (g flagGroup) usages() string {
	var left []string
	w := 0
	for _, f := range g.flags {
		l := "      " + flagHead(f)
		if f.Shorthand != "" {
			l = "  " + flagHead(f)
		}
		left = append(left, l)
		w = max(w, len(l))
	}
	var b strings.Builder
	for i, f := range g.flags {
		fmt.Fprintf(&b, "%-*s   %s\n", w, left[i], flagUsage(f))
	}
	return b.String()
}

// flagHead is a flag as it is typed: "-e, --env NAME=VALUE".
func flagHead(f *pflag.Flag) string {
	h := "--" + f.Name
	if f.Shorthand != "" {
		h = "-" + f.Shorthand + ", " + h
	}
	if t := flagType(f); t != "" {
		h += " " + t
	}
	return h
}

// flagType is the placeholder of a flag's value, "" for a switch.
func flagType(f *pflag.Flag) string {
	name, _ := pflag.UnquoteUsage(f)
	switch f.Value.Type() {
	case "bool":
		return ""
	case "stringArray", "stringSlice", "string", "uint32", "int32", "int", "uint64":
		if name == "string" || name == "strings" || name == "stringArray" {
			return "TEXT"
		}
		if name == "uint32" || name == "int32" || name == "int" || name == "uint64" || name == "uint" {
			return "N"
		}
		return name
	}
	return f.Value.Type()
}

func flagUsage(f *pflag.Flag) string {
	_, u := pflag.UnquoteUsage(f)
	if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" {
		u += " (default " + f.DefValue + ")"
	}
	return u
}

func newHelp(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Show the help of a command or topic",
		Example: "banger help vm run\nbanger help exit-status",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil || c == nil || (len(rest) > 0 && len(args) > 0) {
				return usage("no help for %q", strings.Join(args, " ")).WithHint("banger --help")
			}
			c.HelpFunc()(c, nil)
			return nil
		},
	}
	return a.declare(cmd, verb{effect: effectRead, local: true})
}

// exitStatusHelp is the manual's table of exit statuses.
const exitStatusHelp = `What banger's exit statuses mean.

run, exec, shell and ssh pass on the status of the command in the VM. So that
nothing is confused with it, banger's own failures have statuses of their own:

  0-123    the command's own
  124      the command's --timeout passed
  125      banger failed; the error says why
  126      the command was found and cannot be run
  127      there is no such command in the VM
  128+n    signal n ended the command
  130      interrupted: Ctrl-C before the command ran, or twice within two seconds
  255      ssh: OpenSSH itself failed

Every other verb:

  0        done
  1        failed
  2        wrong usage
  3        no such thing
  4        conflict, or in use
  5        this host cannot; banger doctor knows why
  6        timed out
  128+n    interrupted by signal n (130: Ctrl-C)

A verb on several things does all it can and gives the largest status.
`

func newExitStatusTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-status", Short: "What banger's exit statuses mean", Long: exitStatusHelp}
}
