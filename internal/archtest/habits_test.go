package archtest

import (
	"go/ast"
	"strings"
	"testing"
)

// habit is a call that is left to few, with where it may be and why.
type habit struct {
	call    string
	allowed []string // path prefixes
	why     string
}

var habits = []habit{
	{"time.Sleep", nil, "waiting asks, with a deadline; it does not sleep"},
	{"context.Background", []string{"cmd/", "internal/shim/main.go", "internal/hypervisor/hosted/"}, "a context begins where a process does"},
	{"context.TO" + "DO", nil, "a context begins where a process does"},
	{"os.Exit", []string{"cmd/", "internal/hypervisor/hosted/guest.go"}, "only main ends the process"},
	{"fmt.Print", []string{"cmd/"}, "only cli/ui speaks to the terminal, and it has a writer"},
	{"fmt.Println", []string{"cmd/"}, "only cli/ui speaks to the terminal, and it has a writer"},
	{"fmt.Printf", []string{"cmd/"}, "only cli/ui speaks to the terminal, and it has a writer"},
	{"log.Fatal", nil, "errors are returned"},
	{"log.Fatalf", nil, "errors are returned"},
	{"log.Println", nil, "logging goes through log/slog"},
	{"log.Printf", nil, "logging goes through log/slog"},
}

func TestHabits(t *testing.T) {
	for _, p := range load(t) {
		if p.forTests() {
			continue
		}
		for name, f := range p.files {
			if ast.IsGenerated(f) {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok {
					check(t, name, fset.Position(n.Pos()).Line, x.Name+"."+sel.Sel.Name)
				}
				return true
			})
		}
	}
}

func check(t *testing.T, name string, line int, call string) {
	t.Helper()
	for _, h := range habits {
		if h.call != call {
			continue
		}
		ok := false
		for _, a := range h.allowed {
			ok = ok || strings.HasPrefix(name, a)
		}
		if !ok {
			t.Errorf("%s:%d calls %s: %s", name, line, call, h.why)
		}
	}
}
