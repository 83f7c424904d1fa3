package cli

import (
	"reflect"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/errs"
)

// schemaView is everything a program has to know to use banger.
type schemaView struct {
	Schema     int             `json:"schema" doc:"number of this format"`
	Version    string          `json:"version" doc:"of this banger"`
	API        uint32          `json:"api" doc:"number of the daemon's contract"`
	Verbs      []verbSchema    `json:"verbs" doc:"every verb"`
	Flags      []flagSchema    `json:"flags" doc:"flags of all verbs"`
	Exit       []exitSchema    `json:"exit_statuses" doc:"of verbs that pass no command's status on"`
	ExitPassed []exitSchema    `json:"exit_statuses_passed" doc:"of verbs that pass a command's status on"`
	ErrorKinds []kindSchema    `json:"error_kinds" doc:"what sort of failure there is"`
	Error      []fieldSchema   `json:"error" doc:"what --json prints on standard error when a verb fails"`
	Services   []serviceSchema `json:"services" doc:"the daemon's contract, served on its socket as POST /SERVICE/METHOD with JSON"`
}

type verbSchema struct {
	Command  string       `json:"command" doc:"as it is typed"`
	Same     string       `json:"same_as,omitempty" doc:"the long form this is short for"`
	Aliases  []string     `json:"aliases,omitempty" doc:"other words for the last one"`
	Summary  string       `json:"summary" doc:"one sentence"`
	Usage    string       `json:"usage" doc:"arguments"`
	Examples []string     `json:"examples" doc:"that work when pasted"`
	Effect   effect       `json:"effect" doc:"read: changes nothing; idempotent: doing it again changes nothing more; other"`
	Daemon   bool         `json:"daemon" doc:"whether the daemon is started for it"`
	Passes   bool         `json:"passes_status" doc:"whether the exit status is that of a command in the VM"`
	Hidden   bool         `json:"hidden,omitempty" doc:"meant for other programs"`
	Args     []argSchema  `json:"args" doc:"positional arguments"`
	Flags    []flagSchema `json:"flags" doc:"its own flags"`
	Output   outputSchema `json:"output" doc:"what --json prints"`
	Exit     []int        `json:"exit_statuses" doc:"that are possible besides 128+n"`
	Errors   []errs.Kind  `json:"error_kinds" doc:"that are possible"`
}

type argSchema struct {
	Name     string `json:"name" doc:"placeholder in usage"`
	Optional bool   `json:"optional" doc:"may be left out"`
	Many     bool   `json:"many" doc:"may be repeated"`
}

type flagSchema struct {
	Name    string   `json:"name" doc:"without dashes"`
	Short   string   `json:"short,omitempty" doc:"one letter"`
	Type    string   `json:"type" doc:"switch, text, number, size, duration, or one of several values"`
	Values  []string `json:"values,omitempty" doc:"of type choice"`
	Default string   `json:"default,omitempty" doc:"where it is not given"`
	Many    bool     `json:"many,omitempty" doc:"may be repeated"`
	Usage   string   `json:"usage" doc:"what it does"`
}

type outputSchema struct {
	Shape  shape         `json:"shape" doc:"none, object, array, lines (one object a line) or raw"`
	Fields []fieldSchema `json:"fields" doc:"of the object, or of each"`
}

type fieldSchema struct {
	Name     string        `json:"name" doc:"key"`
	Type     string        `json:"type" doc:"string, integer, number, boolean, object, map, or array of these"`
	Optional bool          `json:"optional,omitempty" doc:"may be missing"`
	Doc      string        `json:"doc,omitempty" doc:"what it means"`
	Fields   []fieldSchema `json:"fields,omitempty" doc:"of objects"`
}

type exitSchema struct {
	Status int    `json:"status" doc:"of the process"`
	Means  string `json:"means" doc:"what happened"`
}

type kindSchema struct {
	Kind      errs.Kind `json:"kind" doc:"stable name"`
	Exit      int       `json:"exit_status" doc:"of verbs that pass no command's status on"`
	Retryable bool      `json:"retryable" doc:"whether trying the same again can help"`
	Means     string    `json:"means" doc:"what happened"`
}

type serviceSchema struct {
	Name    string         `json:"name" doc:"full name"`
	Methods []methodSchema `json:"methods" doc:"what it does"`
}

type methodSchema struct {
	Name         string `json:"name" doc:"of the method"`
	Input        string `json:"input" doc:"message"`
	Output       string `json:"output" doc:"message"`
	ClientStream bool   `json:"client_stream,omitempty" doc:"several messages in"`
	ServerStream bool   `json:"server_stream,omitempty" doc:"several messages out"`
}

func newSchema(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "schema",
		Short:   "Print every verb as JSON, for programs",
		Long:    "Print as JSON every verb with its arguments, output, effect, exit statuses and\nkinds of errors, and the daemon's contract. What is published stays.",
		Example: "banger schema | jq -r '.verbs[].command'\nbanger schema | jq '.error_kinds[] | select(.retryable)'",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ui.JSONValue(schemaOf(a, cmd.Root()))
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: schemaView{}, local: true})
}

func schemaOf(a *app, root *cobra.Command) schemaView {
	s := schemaView{
		Schema: 1, Version: buildinfo.Get().Version, API: buildinfo.API, Flags: flagsOf(root.PersistentFlags()),
		Exit: exits, ExitPassed: exitsPassed, Error: fieldsOf(reflect.TypeFor[errorLine](), nil), Services: services(),
	}
	for _, k := range errs.Kinds() {
		s.ErrorKinds = append(s.ErrorKinds, kindSchema{k, k.ExitStatus(), k.Retryable(), kindMeans[k]})
	}
	walk(root, func(cmd *cobra.Command) {
		if v, ok := a.verbs[cmd]; ok {
			s.Verbs = append(s.Verbs, verbOf(cmd, v))
		}
	})
	return s
}

// walk visits every command, parents first.
func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		walk(c, f)
	}
}

// longForms are what the short forms at the top stand for.
var longForms = map[string]string{"ps": "vm list", "rm": "vm delete", "pull": "image pull", "images": "image list"}

func verbOf(cmd *cobra.Command, v verb) verbSchema {
	s := verbSchema{
		Command: strings.TrimPrefix(cmd.CommandPath(), "banger "), Aliases: cmd.Aliases, Summary: cmd.Short, Usage: cmd.UseLine(), Examples: lines(cmd.Example),
		Effect: v.effect, Daemon: !v.local, Passes: v.passes, Hidden: cmd.Hidden, Args: argsOf(cmd.Use), Flags: flagsOf(cmd.LocalNonPersistentFlags()),
		Output: outputSchema{Shape: v.shape, Fields: []fieldSchema{}},
	}
	if !cmd.Parent().HasParent() {
		s.Same = longForms[cmd.Name()]
		if c, _, err := cmd.Root().Find([]string{"vm", cmd.Name()}); s.Same == "" && err == nil && c.Name() == cmd.Name() {
			s.Same = "vm " + cmd.Name()
		}
	}
	if v.output != nil {
		s.Output.Fields = fieldsOf(reflect.TypeOf(v.output), nil)
	}
	s.Exit, s.Errors = outcomes(v)
	return s
}

// outcomes are the statuses and kinds that a verb can end with.
func outcomes(v verb) ([]int, []errs.Kind) {
	kinds := errs.Kinds()
	if v.local {
		kinds = []errs.Kind{errs.Invalid, errs.NotFound, errs.Denied, errs.Unavailable, errs.Unsupported, errs.Timeout, errs.Cancelled, errs.Internal}
	}
	if v.passes {
		return []int{0, 124, 125, 126, 127, 130}, kinds
	}
	set := map[int]bool{0: true}
	for _, k := range kinds {
		set[k.ExitStatus()] = true
	}
	out := make([]int, 0, len(set))
	for n := range set {
		out = append(out, n)
	}
	sort.Ints(out)
	return out, kinds
}

// argsOf reads a usage line: "NAME… [PATH] [-- CMD…]".
func argsOf(use string) []argSchema {
	out := []argSchema{}
	optional := false
	for _, w := range strings.Fields(use)[1:] {
		if strings.HasPrefix(w, "[") {
			optional = true
		}
		name := strings.Trim(w, "[]")
		many := strings.HasSuffix(name, "…")
		if name = strings.TrimSuffix(name, "…"); name != "" && name != "--" {
			out = append(out, argSchema{Name: name, Optional: optional, Many: many})
		}
		if strings.HasSuffix(w, "]") {
			optional = false
		}
	}
	return out
}

func flagsOf(fs *pflag.FlagSet) []flagSchema {
	out := []flagSchema{}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		s := flagSchema{Name: f.Name, Short: f.Shorthand, Default: f.DefValue}
		_, s.Usage = pflag.UnquoteUsage(f)
		switch t := f.Value.Type(); t {
		case "bool":
			s.Type, s.Default = "switch", ""
		case "stringArray":
			s.Type, s.Many, s.Default = "text", true, ""
		case "string":
			s.Type = "text"
		case "uint32", "uint64", "int32":
			s.Type = "number"
			if s.Default == "0" {
				s.Default = ""
			}
		case "SIZE", "DURATION":
			s.Type = strings.ToLower(t)
		default:
			s.Type, s.Values = "choice", strings.Split(t, "|")
		}
		out = append(out, s)
	})
	return out
}

// fieldsOf describes a view by its json and doc tags. within ends recursion.
func fieldsOf(t reflect.Type, within []reflect.Type) []fieldSchema {
	for _, w := range within {
		if w == t {
			return nil
		}
	}
	within = append(within, t)
	out := []fieldSchema{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		s := fieldSchema{Name: name, Doc: f.Tag.Get("doc"), Optional: strings.Contains(opts, "omitempty")}
		s.Type, s.Fields = typeOf(f.Type, within)
		out = append(out, s)
	}
	return out
}

func typeOf(t reflect.Type, within []reflect.Type) (string, []fieldSchema) {
	switch t.Kind() {
	case reflect.Pointer:
		return typeOf(t.Elem(), within)
	case reflect.Slice:
		of, fields := typeOf(t.Elem(), within)
		return "array of " + of, fields
	case reflect.Map:
		of, _ := typeOf(t.Elem(), within)
		return "map of " + of, nil
	case reflect.Struct:
		return "object", fieldsOf(t, within)
	case reflect.Bool:
		return "boolean", nil
	case reflect.Float64:
		return "number", nil
	case reflect.String:
		return "string", nil
	}
	return "integer", nil
}
