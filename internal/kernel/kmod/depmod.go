package kmod

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// WriteIndexes writes modules.dep, .alias, .symbols, .softdep, .devname and
// .builtin.alias with their binary twins into the tree's root, as depmod does.
func (t *Tree) WriteIndexes() error {
	builtin, err := t.Builtin()
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	if err := t.depFiles(files, builtin); err != nil {
		return err
	}
	t.aliasFiles(files)
	t.symbolFiles(files)
	if err := t.builtinFiles(files, builtin); err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(t.Root, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// depFiles writes each module with all it needs, the most basic last.
func (t *Tree) depFiles(files map[string][]byte, builtin map[string]bool) error {
	var text strings.Builder
	x := newIndex()
	for _, m := range t.sorted {
		order, err := t.LoadOrder([]string{m.Name}, builtin)
		if err != nil {
			return err
		}
		line := m.Path + ":"
		for _, d := range slices.Backward(order[:len(order)-1]) {
			line += " " + d.Path
		}
		text.WriteString(line + "\n")
		x.insert(m.Name, line, m.priority)
	}
	files["modules.dep"] = []byte(text.String())
	files["modules.dep.bin"] = x.bytes()
	return nil
}

func (t *Tree) aliasFiles(files map[string][]byte) {
	var alias, soft, dev strings.Builder
	alias.WriteString("# Aliases extracted from modules themselves.\n")
	soft.WriteString("# Soft dependencies extracted from modules themselves.\n")
	dev.WriteString("# Device nodes to trigger on-demand module loading.\n")
	x := newIndex()
	for _, m := range t.sorted {
		for _, a := range m.Aliases {
			if strings.Contains(a, " ") {
				continue
			}
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.Name)
			x.insert(normalizeAlias(a), m.Name, m.priority)
		}
		for _, s := range m.Softdeps {
			fmt.Fprintf(&soft, "softdep %s %s\n", m.Name, s)
		}
		if line := devname(m); line != "" {
			dev.WriteString(line + "\n")
		}
	}
	files["modules.alias"] = []byte(alias.String())
	files["modules.alias.bin"] = x.bytes()
	files["modules.softdep"] = []byte(soft.String())
	files["modules.devname"] = []byte(dev.String())
}

// devname gives "module node c10:200" for a module that says which device
// node, whose numbers it also names, should load it; otherwise "".
func devname(m *Module) string {
	var node, numbers string
	for _, a := range m.Aliases {
		if n, ok := strings.CutPrefix(a, "devname:"); ok {
			node = n
		}
		for prefix, kind := range map[string]string{"char-major-": "c", "block-major-": "b"} {
			rest, ok := strings.CutPrefix(a, prefix)
			var major, minor uint
			if !ok {
				continue
			}
			if n, _ := fmt.Sscanf(rest, "%d-%d", &major, &minor); n == 2 {
				numbers = fmt.Sprintf("%s%d:%d", kind, major, minor)
			}
		}
	}
	if node == "" || numbers == "" || strings.ContainsAny(node, " ") {
		return ""
	}
	return m.Name + " " + node + " " + numbers
}

func (t *Tree) symbolFiles(files map[string][]byte) {
	var text strings.Builder
	text.WriteString("# Aliases for symbols, used by symbol_request().\n")
	x := newIndex()
	for _, m := range t.sorted {
		for _, s := range m.Symbols {
			fmt.Fprintf(&text, "alias symbol:%s %s\n", s, m.Name)
			x.insert("symbol:"+s, m.Name, m.priority)
		}
	}
	files["modules.symbols"] = []byte(text.String())
	files["modules.symbols.bin"] = x.bytes()
}

// builtinFiles writes the indexes by which modprobe knows that there is
// nothing to load for a name or alias.
func (t *Tree) builtinFiles(files map[string][]byte, builtin map[string]bool) error {
	x := newIndex()
	names := make([]string, 0, len(builtin))
	for n := range builtin {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		x.insert(n, "", 0)
	}
	files["modules.builtin.bin"] = x.bytes()

	b, err := os.ReadFile(filepath.Join(t.Root, "modules.builtin.modinfo"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	x = newIndex()
	for field := range strings.SplitSeq(string(b), "\x00") {
		// "module.alias=pattern"
		key, value, _ := strings.Cut(field, "=")
		name, ok := strings.CutSuffix(key, ".alias")
		if ok && value != "" && clean(value) && clean(name) {
			x.insert(normalizeAlias(value), strings.ReplaceAll(name, "-", "_"), 0)
		}
	}
	files["modules.builtin.alias.bin"] = x.bytes()
	return nil
}

// normalizeAlias turns dashes into underscores outside of character classes,
// as modprobe does before it looks an alias up.
func normalizeAlias(a string) string {
	b := []byte(a)
	in := false
	for i, c := range b {
		switch {
		case c == '[':
			in = true
		case c == ']':
			in = false
		case c == '-' && !in:
			b[i] = '_'
		}
	}
	return string(b)
}
