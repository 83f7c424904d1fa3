package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
)

// tree is the whole command tree, as Main builds it.
func tree(t testing.TB) (*app, *cobra.Command) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	getenv := func(string) string { return "" }
	a := &app{p: Process{In: null, Out: null, Err: null, Getenv: getenv, Dir: t.TempDir()}, ui: ui.New(ui.ForFiles(null, null, null, getenv)), verbs: map[*cobra.Command]verb{}}
	return a, newRoot(a)
}

func TestTheSchemaKnowsEveryVerb(t *testing.T) {
	a, root := tree(t)
	s := schemaOf(a, root)
	known := map[string]verbSchema{}
	for _, v := range s.Verbs {
		known[v.Command] = v
	}
	walk(root, func(cmd *cobra.Command) {
		if cmd.HasSubCommands() || !cmd.Runnable() || !cmd.HasParent() {
			return
		}
		path := strings.TrimPrefix(cmd.CommandPath(), "banger ")
		v, ok := known[path]
		if !ok {
			t.Errorf("%s is not in the schema", path)
			return
		}
		delete(known, path)
		checkVerb(t, cmd, v)
	})
	for path := range known {
		t.Errorf("%s is in the schema only", path)
	}
	for _, k := range s.ErrorKinds {
		if k.Means == "" {
			t.Errorf("kind %s has no meaning", k.Kind)
		}
	}
	if len(s.ErrorKinds) != len(errs.Kinds()) || len(s.Services) < 6 || len(s.Error) != 1 || len(s.Error[0].Fields) < 4 {
		t.Errorf("%d kinds, %d services, error %v", len(s.ErrorKinds), len(s.Services), s.Error)
	}
}

var snake = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

func checkVerb(t *testing.T, cmd *cobra.Command, v verbSchema) {
	t.Helper()
	switch v.Effect {
	case effectRead, effectIdempotent, effectOther:
	default:
		t.Errorf("%s: effect %q", v.Command, v.Effect)
	}
	if len(v.Examples) < 2 && v.Command != "help" {
		t.Errorf("%s: %d examples, want two", v.Command, len(v.Examples))
	}
	if v.Output.Shape != shapeNone && v.Output.Shape != shapeRaw && len(v.Output.Fields) == 0 {
		t.Errorf("%s: prints %s without fields", v.Command, v.Output.Shape)
	}
	if v.Summary == "" || strings.HasSuffix(v.Summary, ".") || len(v.Exit) == 0 || len(v.Errors) == 0 {
		t.Errorf("%s: incomplete: %+v", v.Command, v)
	}
	checkFields(t, v.Command, v.Output.Fields)
	flags := map[string]bool{}
	for _, f := range v.Flags {
		flags[f.Name] = true
		if f.Usage == "" || f.Type == "choice" && len(f.Values) < 2 {
			t.Errorf("%s --%s: %+v", v.Command, f.Name, f)
		}
	}
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if !flags[f.Name] && f.Name != "help" {
			t.Errorf("%s: --%s is not in the schema", v.Command, f.Name)
		}
	})
}

func checkFields(t *testing.T, verb string, fields []fieldSchema) {
	t.Helper()
	for _, f := range fields {
		if !snake.MatchString(f.Name) || f.Doc == "" && !strings.HasPrefix(verb, "schema") {
			t.Errorf("%s: field %q, doc %q", verb, f.Name, f.Doc)
		}
		checkFields(t, verb, f.Fields)
	}
}

func TestShortFormsAreTheLongOnes(t *testing.T) {
	a, root := tree(t)
	byName := map[string]verbSchema{}
	for _, v := range schemaOf(a, root).Verbs {
		byName[v.Command] = v
	}
	for _, short := range []string{"run", "ps", "exec", "shell", "ssh", "cp", "logs", "stop", "rm", "pull", "images"} {
		s, ok := byName[short]
		l, ok2 := byName[s.Same]
		if !ok || !ok2 || !reflect.DeepEqual(s.Flags, l.Flags) || !reflect.DeepEqual(s.Output, l.Output) || s.Effect != l.Effect {
			t.Errorf("%s is not %q", short, s.Same)
		}
	}
}

func TestTheSameFlagMeansTheSame(t *testing.T) {
	a, root := tree(t)
	types := map[string]string{}
	shorts := map[string]string{}
	for _, v := range schemaOf(a, root).Verbs {
		for _, f := range v.Flags {
			if was, ok := types[f.Name]; ok && was != f.Type {
				t.Errorf("%s: --%s is a %s here and a %s elsewhere", v.Command, f.Name, f.Type, was)
			}
			types[f.Name] = f.Type
			if was, ok := shorts[f.Short]; ok && f.Short != "" && was != f.Name && f.Short != "f" {
				t.Errorf("%s: -%s is --%s here and --%s elsewhere", v.Command, f.Short, f.Name, was)
			}
			shorts[f.Short] = f.Name
		}
	}
}

func TestExamplesParse(t *testing.T) {
	_, root := tree(t)
	walk(root, func(cmd *cobra.Command) {
		for _, line := range lines(cmd.Example) {
			for _, part := range strings.FieldsFunc(line, func(r rune) bool { return r == '|' || r == ';' || r == '(' || r == ')' || r == '>' || r == '<' }) {
				words := strings.Fields(part)
				for len(words) > 0 && strings.Contains(words[0], "=") && !strings.HasPrefix(words[0], "-") {
					words = words[1:]
				}
				if len(words) < 2 || words[0] != "banger" {
					continue
				}
				c, _, err := root.Find(words[1:])
				if err != nil || c == root || c.HasSubCommands() {
					t.Errorf("%q: no such command", line)
					continue
				}
				_, fresh := tree(t) // flags keep what they were told
				c, rest, _ := fresh.Find(words[1:])
				if err := c.ParseFlags(rest); err != nil {
					t.Errorf("%q: %v", line, err)
				}
			}
		}
	})
}

func TestHelpFitsOneScreen(t *testing.T) {
	if n := strings.Count(rootHelp, "\n"); n > 24 {
		t.Errorf("banger --help has %d lines", n)
	}
	for _, l := range strings.Split(rootHelp, "\n") {
		if len(l) > 80 {
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
}

// The reference in docs/cli is what the commands say of themselves.
func TestTheReferenceIsCurrent(t *testing.T) {
	_, root := tree(t)
	dir := filepath.Join("..", "..", "docs", "cli")
	want := pages(root, true)
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != text {
			t.Errorf("docs/cli/%s is not current (%v): banger man --markdown docs/cli", name, err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := want[f.Name()]; !ok {
			t.Errorf("docs/cli/%s is of a command that is gone", f.Name())
		}
	}
}

func TestManualPagesAreRoff(t *testing.T) {
	_, root := tree(t)
	for name, text := range pages(root, false) {
		if !strings.HasPrefix(text, ".TH ") || !strings.Contains(text, "\n.SH NAME\n") {
			t.Errorf("%s: %.60q", name, text)
		}
		for _, l := range strings.Split(text, "\n") {
			if strings.HasPrefix(l, "'") {
				t.Errorf("%s: %q is read as a request", name, l)
			}
		}
	}
}

func TestViewsAreValidJSON(t *testing.T) {
	a, root := tree(t)
	b, err := json.Marshal(schemaOf(a, root))
	if err != nil || !json.Valid(b) {
		t.Fatal(err)
	}
	for _, v := range a.verbs {
		if v.output == nil {
			continue
		}
		if _, err := json.Marshal(v.output); err != nil {
			t.Errorf("%T: %v", v.output, err)
		}
	}
}
