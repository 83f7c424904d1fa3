package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/banger-dev/banger/internal/errs"
)

func newMan(a *app) *cobra.Command {
	var markdown bool
	cmd := &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the manual's pages into a directory",
		Example: "banger man /usr/local/share/man/man1\nbanger man --markdown docs/cli",
		Hidden:  true,
		Args:    args(1, 1, "a directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runMan(a, cmd.Root(), args[0], markdown)
		},
	}
	cmd.Flags().BoolVar(&markdown, "markdown", false, "as Markdown, one page a command")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeNone, local: true})
}

func runMan(a *app, root *cobra.Command, dir string, markdown bool) error {
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(a.p.Dir, dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errs.Wrap(err, errs.Invalid, "destination", "cannot make the directory")
	}
	for name, text := range pages(root, markdown) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return errs.Wrap(err, errs.Invalid, "destination", "cannot write a page")
		}
	}
	return nil
}

// pages are the manual, by file name; the same commands give the same bytes.
func pages(root *cobra.Command, markdown bool) map[string]string {
	out := map[string]string{}
	walk(root, func(cmd *cobra.Command) {
		if !cmd.IsAvailableCommand() && !cmd.IsAdditionalHelpTopicCommand() && cmd.HasParent() {
			return
		}
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		if markdown {
			out[name+".md"] = markdownPage(cmd)
		} else {
			out[name+".1"] = roffPage(cmd, name)
		}
	})
	return out
}

// description is a page's prose.
func description(cmd *cobra.Command) string {
	switch {
	case !cmd.HasParent():
		return strings.TrimSpace(rootHelp)
	case cmd.Long != "":
		return strings.TrimSpace(cmd.Long)
	}
	return cmd.Short + "."
}

func markdownPage(cmd *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s.\n", cmd.CommandPath(), cmd.Short)
	runnable := cmd.HasParent() && !cmd.HasSubCommands() && cmd.Runnable()
	if runnable {
		fmt.Fprintf(&b, "\n```\n%s\n```\n", cmd.UseLine())
	}
	if d := description(cmd); d != cmd.Short+"." {
		if cmd.HasParent() && runnable {
			_, d, _ = strings.Cut(d, "\n\n")
		}
		if d = strings.TrimSpace(d); d != "" {
			fmt.Fprintf(&b, "\n```text\n%s\n```\n", d)
		}
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\n## Examples\n\n```sh\n%s\n```\n", strings.TrimSpace(cmd.Example))
	}
	if subs := visible(cmd); len(subs) > 0 {
		b.WriteString("\n## Commands\n\n")
		for _, c := range subs {
			fmt.Fprintf(&b, "- [%s](%s.md): %s\n", c.CommandPath(), strings.ReplaceAll(c.CommandPath(), " ", "-"), c.Short)
		}
	}
	if runnable {
		for _, g := range flagGroups(cmd) {
			if g.title == "Everywhere" {
				continue
			}
			fmt.Fprintf(&b, "\n## %s\n\n", g.title)
			for _, f := range g.flags {
				fmt.Fprintf(&b, "- `%s`: %s\n", flagHead(f), flagUsage(f))
			}
		}
		b.WriteString("\nEverywhere: `--json`, `-q`, `-v`, `--debug`; see [banger](banger.md). Exit statuses: [banger exit-status](banger-exit-status.md).\n")
	}
	return b.String()
}

func roffPage(cmd *cobra.Command, name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"banger\" \"banger manual\"\n", roff(strings.ToUpper(name)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(cmd.Short))
	if cmd.Runnable() {
		fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(cmd.UseLine()))
	}
	fmt.Fprintf(&b, ".SH DESCRIPTION\n.nf\n%s\n.fi\n", roff(description(cmd)))
	if cmd.HasParent() && !cmd.HasSubCommands() && cmd.Runnable() {
		for _, g := range flagGroups(cmd) {
			fmt.Fprintf(&b, ".SH %s\n", roff(strings.ToUpper(g.title)))
			for _, f := range g.flags {
				fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(flagHead(f)), roff(flagUsage(f)))
			}
		}
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(strings.TrimSpace(cmd.Example)))
	}
	if cmd.Name() != "exit-status" {
		b.WriteString(".SH EXIT STATUS\nSee\n.BR banger-exit-status (1).\n")
	}
	var also []string
	for _, c := range visible(cmd) {
		also = append(also, strings.ReplaceAll(c.CommandPath(), " ", "-")+"(1)")
	}
	if cmd.HasParent() {
		also = append(also, strings.ReplaceAll(cmd.Parent().CommandPath(), " ", "-")+"(1)")
	}
	fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", roff(strings.Join(also, ", ")))
	return b.String()
}

// roff escapes text: backslashes, dashes that are meant, and lines that would
// be requests.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	l := strings.Split(s, "\n")
	for i := range l {
		if strings.HasPrefix(l[i], ".") || strings.HasPrefix(l[i], "'") {
			l[i] = `\&` + l[i]
		}
	}
	return strings.Join(l, "\n")
}
