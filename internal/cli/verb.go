package cli

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// effect says what running a verb twice means.
type effect string

const (
	effectRead       effect = "read"       // changes nothing
	effectIdempotent effect = "idempotent" // doing it again changes nothing more
	effectOther      effect = "other"
)

// shape is what --json prints.
type shape string

const (
	shapeNone   shape = "none"
	shapeObject shape = "object"
	shapeArray  shape = "array"
	shapeLines  shape = "lines" // one object a line
	shapeRaw    shape = "raw"   // bytes that were asked for; --json changes nothing
)

// verb is what the schema says of a command beyond what cobra knows.
type verb struct {
	effect effect
	shape  shape
	output any  // a zero value of what --json prints (of one element or line)
	passes bool // the status is that of a command in the guest
	local  bool // needs no daemon
}

// declare records a command for the schema and gives it back.
func (a *app) declare(cmd *cobra.Command, v verb) *cobra.Command {
	if v.shape == "" {
		v.shape = shapeNone
	}
	cmd.Flags().SortFlags = false
	a.verbs[cmd] = v
	return cmd
}

const groupKey = "banger_group"

// group puts flags under a heading of their own in --help.
func group(fs *pflag.FlagSet, title string, names ...string) {
	for _, n := range names {
		if f := fs.Lookup(n); f != nil {
			if f.Annotations == nil {
				f.Annotations = map[string][]string{}
			}
			f.Annotations[groupKey] = []string{title}
		}
	}
}
