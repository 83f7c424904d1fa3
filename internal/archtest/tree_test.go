package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/banger-dev/banger/"
	top    = "../.." // of the tree, from here
)

// pkg is one directory of Go files, tests left out.
type pkg struct {
	path    string // from the top, with slashes
	imports []string
	files   map[string]*ast.File // by path from the top
}

// forTests says whether the package exists for tests alone.
func (p pkg) forTests() bool {
	return slices.ContainsFunc(strings.Split(p.path, "/"), func(s string) bool {
		return strings.HasSuffix(s, "test") || s == "test" || s == "testdata"
	})
}

var fset = token.NewFileSet()

// load parses the whole tree; generated code included.
func load(t *testing.T) []pkg {
	t.Helper()
	by := map[string]*pkg{}
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return
		}
		f, err := parser.ParseFile(fset, filepath.Join(top, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		dir := path.Dir(name)
		p := by[dir]
		if p == nil {
			p = &pkg{path: dir, files: map[string]*ast.File{}}
			by[dir] = p
		}
		p.files[name] = f
		for _, i := range f.Imports {
			s, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if own, ok := strings.CutPrefix(s, module); ok && !slices.Contains(p.imports, own) {
				p.imports = append(p.imports, own)
			}
		}
	})
	var all []pkg
	for _, p := range by {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b pkg) int { return strings.Compare(a.path, b.path) })
	if len(all) < 10 {
		t.Fatalf("only %d packages found", len(all))
	}
	return all
}

// walk calls f with every file of the tree that is banger's own source.
func walk(t *testing.T, f func(name string)) {
	t.Helper()
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case ".git", "bin", "dist", "node_modules", ".cache":
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() {
			f(filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(top, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range load(t) {
		if strings.Contains(p.path, "testdata") {
			continue
		}
		said := false
		for _, f := range p.files {
			want := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				want = "Command "
			}
			said = said || ast.IsGenerated(f) || f.Doc != nil && strings.HasPrefix(f.Doc.Text(), want)
		}
		if !said {
			t.Errorf("%s has no package comment", p.path)
		}
	}
}

// A long file is a prompt to look for a hidden noun; a very long one is sure
// to hide one.
func TestFilesAreShort(t *testing.T) {
	const prompt, most = 400, 600
	for _, p := range load(t) {
		for name, f := range p.files {
			if ast.IsGenerated(f) {
				continue
			}
			switch n := fset.File(f.FileStart).LineCount(); {
			case n > most:
				t.Errorf("%s has %d lines: is it one room, or several?", name, n)
			case n > prompt:
				t.Logf("%s has %d lines", name, n)
			}
		}
	}
}
