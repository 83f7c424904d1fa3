package kernel

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"

	"github.com/pelletier/go-toml/v2"
)

// Recipe says what a named kernel is made of (kernels/*.toml).
type Recipe struct {
	Schema int    `toml:"schema"`
	Name   string `toml:"name"`
	Debian Debian `toml:"debian"`
	// BootModules are what the initramfs loads, in this order, each after
	// what it depends on; what is built in is left out.
	BootModules []string `toml:"boot_modules"`
}

// Debian names a kernel package of Debian's.
type Debian struct {
	Suite        string `toml:"suite"`
	Component    string `toml:"component"`
	Architecture string `toml:"architecture"`
	// Package is a pattern (path.Match); of all that match, the newest
	// version is taken.
	Package string `toml:"package"`
	Keyring string `toml:"keyring"` // file that signs the suite
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

// ReadRecipes reads every *.toml in fsys.
func ReadRecipes(fsys fs.FS) (map[string]Recipe, error) {
	names, err := fs.Glob(fsys, "*.toml")
	if err != nil {
		return nil, err
	}
	out := map[string]Recipe{}
	for _, n := range names {
		f, err := fsys.Open(n)
		if err != nil {
			return nil, err
		}
		var r Recipe
		err = toml.NewDecoder(f).DisallowUnknownFields().Decode(&r)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("kernel recipe %s: %w", n, err)
		}
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("kernel recipe %s: %w", n, err)
		}
		out[r.Name] = r
	}
	return out, nil
}

func (r Recipe) check() error {
	switch {
	case r.Schema != 1:
		return fmt.Errorf("schema %d is not 1", r.Schema)
	case !nameForm.MatchString(r.Name):
		return fmt.Errorf("unusable name %q", r.Name)
	case r.Debian.Suite == "" || r.Debian.Component == "" || r.Debian.Architecture == "" || r.Debian.Package == "" || r.Debian.Keyring == "":
		return fmt.Errorf("%s: every key of [debian] is needed", r.Name)
	}
	if _, err := path.Match(r.Debian.Package, ""); err != nil {
		return fmt.Errorf("%s: package pattern %q: %w", r.Name, r.Debian.Package, err)
	}
	return nil
}
