package kmod

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Module is one module file of a tree.
type Module struct {
	Path string // below the tree's root, with slashes
	Info
	priority uint32
}

// Tree is every module below one /lib/modules/RELEASE directory.
type Tree struct {
	Root    string
	Modules map[string]*Module // by name
	sorted  []*Module          // in the kernel's link order
}

// ReadTree reads every module below root; modules.order there gives their
// precedence. It uses all processors.
func ReadTree(ctx context.Context, root string) (*Tree, error) {
	t := &Tree{Root: root, Modules: map[string]*Module{}}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name := Name(p)
		if name == "" {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if !clean(rel) || strings.ContainsAny(rel, " :") {
			return fmt.Errorf("%w: unusable file name %q", ErrFormat, rel)
		}
		if other := t.Modules[name]; other != nil {
			return fmt.Errorf("%w: %s and %s are both %q", ErrFormat, other.Path, rel, name)
		}
		m := &Module{Path: filepath.ToSlash(rel), Info: Info{Name: name}}
		t.Modules[name] = m
		t.sorted = append(t.sorted, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := t.rank(); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, m := range t.sorted {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return m.read(root)
		})
	}
	return t, g.Wait()
}

func (m *Module) read(root string) error {
	b, err := m.Unpack(root)
	if err != nil {
		return err
	}
	in, err := Parse(b)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Path, err)
	}
	in.Name = m.Name
	m.Info = in
	return nil
}

// Unpack gives the module's plain bytes, root being the tree's.
func (m *Module) Unpack(root string) ([]byte, error) {
	f, err := os.Open(filepath.Join(root, m.Path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Unpack(m.Path, bufio.NewReader(f))
}

// rank sorts the modules by modules.order, what it does not list last.
func (t *Tree) rank() error {
	rank := map[string]int{}
	b, err := os.ReadFile(filepath.Join(t.Root, "modules.order"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		if n := Name(strings.TrimSpace(s.Text())); n != "" {
			rank[n] = len(rank) + 1
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("modules.order: %w", err)
	}
	at := func(m *Module) int {
		if r, ok := rank[m.Name]; ok {
			return r
		}
		return len(rank) + 1
	}
	sort.Slice(t.sorted, func(i, j int) bool {
		a, b := t.sorted[i], t.sorted[j]
		if at(a) != at(b) {
			return at(a) < at(b)
		}
		return a.Path < b.Path
	})
	for i, m := range t.sorted {
		m.priority = uint32(i)
	}
	return nil
}

// LoadOrder gives the named modules and all they need, each after what it
// needs. A name that the tree lacks is an error unless builtin says that the
// kernel contains it.
func (t *Tree) LoadOrder(names []string, builtin map[string]bool) ([]*Module, error) {
	var out []*Module
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if state[name] == done || builtin[name] {
			return nil
		}
		if state[name] == visiting {
			return fmt.Errorf("%w: %s and %s need each other", ErrFormat, name, by)
		}
		m := t.Modules[name]
		if m == nil {
			if by != "" {
				return fmt.Errorf("module %s, which %s needs, is not there", name, by)
			}
			return fmt.Errorf("module %s is not there", name)
		}
		state[name] = visiting
		for _, d := range m.Depends {
			if err := visit(d, name); err != nil {
				return err
			}
		}
		state[name] = done
		out = append(out, m)
		return nil
	}
	for _, n := range names {
		if err := visit(n, ""); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Builtin reads the names of what the kernel contains from modules.builtin.
func (t *Tree) Builtin() (map[string]bool, error) {
	b, err := os.ReadFile(filepath.Join(t.Root, "modules.builtin"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	names := map[string]bool{}
	for line := range strings.SplitSeq(string(b), "\n") {
		if n := Name(strings.TrimSpace(line)); n != "" {
			names[n] = true
		}
	}
	return names, nil
}
