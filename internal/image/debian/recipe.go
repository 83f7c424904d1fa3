// Package debian makes images from recipes: a list of Debian packages, a few
// files and links, installed by mmdebstrap for whatever user runs banger and
// streamed to ext4 without ever being unpacked under banger's own hand.
//
// It does not keep images (internal/image does) and knows nothing of OCI.
package debian

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/image/tarcheck"
)

// Recipe is what one image is made from; docs/image-catalog.md explains the keys.
type Recipe struct {
	Schema     int      `toml:"schema"`
	Name       string   `toml:"name"`
	Summary    string   `toml:"summary"`
	OS         string   `toml:"os"`
	Suite      string   `toml:"suite"`
	Updates    []string `toml:"updates"`
	Security   []string `toml:"security"`
	Components []string `toml:"components"`
	Kernel     string   `toml:"kernel"`
	Init       string   `toml:"init"`
	Epoch      int64    `toml:"epoch"`
	Packages   []string `toml:"packages"`
	Extra      []Extra  `toml:"extra"`
	Units      struct {
		Mask    []string `toml:"mask"`
		Disable []string `toml:"disable"`
	} `toml:"units"`
	Links   map[string]string `toml:"links"`
	Exclude struct {
		Paths []string `toml:"paths"`
		Keep  []string `toml:"keep"`
	} `toml:"exclude"`
	Mise *Mise `toml:"mise"`

	files []tarcheck.File // what lies below root/
}

// Extra takes a few packages from another suite, and nothing else from it.
type Extra struct {
	Suites   []string `toml:"suites"`
	Security []string `toml:"security"`
	Pin      string   `toml:"pin"` // release name pattern of apt's preferences
	Packages []string `toml:"packages"`
}

// Mise says which package of the npm registry holds mise, and what it must be.
type Mise struct {
	Package   string `toml:"package"`
	Version   string `toml:"version"`
	Integrity string `toml:"integrity"`
	Member    string `toml:"member"` // file in the package
	Path      string `toml:"path"`   // file in the image
}

// Names lists the recipes in fsys.
func Names(fsys fs.FS) ([]string, error) {
	files, err := fs.Glob(fsys, "*/recipe.toml")
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = path.Dir(f)
	}
	return names, err
}

// Load reads and checks one recipe.
func Load(fsys fs.FS, name string) (*Recipe, error) {
	b, err := fs.ReadFile(fsys, path.Join(name, "recipe.toml"))
	if err != nil {
		return nil, fmt.Errorf("read recipe %q: %w", name, err)
	}
	r := &Recipe{}
	if err := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(r); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, recipeError(name, "unknown key: %s", strict.String())
		}
		return nil, recipeError(name, "%v", err)
	}
	if err := r.check(name); err != nil {
		return nil, err
	}
	r.files, err = readFiles(fsys, path.Join(name, "root"), time.Unix(r.Epoch, 0))
	return r, err
}

// A recipe's words become arguments of tools, so each has a shape.
var (
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	suiteName   = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	pinPattern  = regexp.MustCompile(`^[a-z][a-z0-9*-]*$`)
	unitName    = regexp.MustCompile(`^[A-Za-z0-9@:_.-]+\.[a-z]+$`)
	pathPattern = regexp.MustCompile(`^/[A-Za-z0-9_./*+-]+$`)
)

func (r *Recipe) check(name string) error {
	switch {
	case r.Schema != 1:
		return recipeError(name, "schema is %d, not 1", r.Schema)
	case r.Name != name:
		return recipeError(name, "it calls itself %q", r.Name)
	case len(r.Packages) == 0 || len(r.Components) == 0:
		return recipeError(name, "no packages or no components")
	case r.Epoch <= 0:
		return recipeError(name, "no epoch")
	}
	packages, suites := r.Packages, append([]string{r.Suite}, r.Updates...)
	suites = append(append(suites, r.Security...), r.Components...)
	for _, e := range r.Extra {
		packages = append(packages[:len(packages):len(packages)], e.Packages...)
		suites = append(append(suites, e.Suites...), e.Security...)
		if !pinPattern.MatchString(e.Pin) || len(e.Packages) == 0 {
			return recipeError(name, "an extra suite needs a pin and packages")
		}
	}
	for what, c := range map[string]struct {
		re     *regexp.Regexp
		values []string
	}{
		"package": {packageName, packages}, "suite or component": {suiteName, suites},
		"unit": {unitName, append(r.Units.Mask[:len(r.Units.Mask):len(r.Units.Mask)], r.Units.Disable...)},
		"path": {pathPattern, append(r.Exclude.Paths[:len(r.Exclude.Paths):len(r.Exclude.Paths)], r.Exclude.Keep...)},
	} {
		for _, v := range c.values {
			if !c.re.MatchString(v) {
				return recipeError(name, "%q is not the name of a %s", v, what)
			}
		}
	}
	return nil
}

// readFiles takes the files below root/ as they are to lie in the image.
func readFiles(fsys fs.FS, root string, mtime time.Time) ([]tarcheck.File, error) {
	var files []tarcheck.File
	err := fs.WalkDir(fsys, root, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p == root {
			return nil // a recipe may go without files
		}
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		mode := int64(0o644)
		if strings.HasPrefix(string(data), "#!") {
			mode = 0o755
		}
		files = append(files, tarcheck.File{Name: strings.TrimPrefix(p, root+"/"), Mode: mode, Data: data, ModTime: mtime})
		return nil
	})
	return files, err
}

// add lists everything that the recipe itself puts into the image.
func (r *Recipe) add() []tarcheck.File {
	mtime := time.Unix(r.Epoch, 0)
	files := append([]tarcheck.File(nil), r.files...)
	for _, u := range r.Units.Mask {
		files = append(files, tarcheck.File{Name: "etc/systemd/system/" + u, Link: "/dev/null", Mode: 0o777, ModTime: mtime})
	}
	links := make([]string, 0, len(r.Links))
	for name := range r.Links {
		links = append(links, name)
	}
	sort.Strings(links)
	for _, name := range links {
		files = append(files, tarcheck.File{Name: tarcheck.Clean(name), Link: r.Links[name], Mode: 0o777, ModTime: mtime})
	}
	// nothing of /usr is newer, so no unit has to catch up at the first boot
	stamp := fmt.Appendf(nil, "# This file keeps systemd's update units from running.\nTIMESTAMP_NSEC=%d\n", mtime.UnixNano())
	for _, name := range []string{"etc/.updated", "var/.updated"} {
		files = append(files, tarcheck.File{Name: name, Mode: 0o644, Data: stamp, ModTime: mtime})
	}
	// where the agent mounts the kernel's modules
	return append(files, tarcheck.File{Name: "usr/lib/modules", Dir: true, Mode: 0o755, ModTime: mtime})
}

// Left out of every image: what building leaves behind, what is a machine's
// own, and what would be stale at once. A trailing slash means the content of
// the directory.
var leftovers = []string{
	"dev/", "run/", "tmp/", "var/tmp/", "var/log/", "var/cache/apt/", "var/lib/apt/lists/", "var/cache/ldconfig/",
	"etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/apt.conf.d/" + buildConf, "etc/apt/preferences.d/pins", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/sources.list", "etc/apt/sources.list.d/",
	"etc/apt/auth.conf", "etc/apt/auth.conf.d/", "etc/.pwd.lock", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
}

// drop says which of the packages' entries stay out of the image.
func (r *Recipe) drop(name string, dir bool) bool {
	for _, l := range leftovers {
		if name == l || strings.HasSuffix(l, "/") && strings.HasPrefix(name, l) && keepDir(name, dir) {
			return true
		}
	}
	switch base := path.Base(name); path.Dir(name) {
	case "etc/ssh":
		return strings.HasPrefix(base, "ssh_host_")
	case "var/lib/dpkg", "var/cache/debconf":
		return strings.HasSuffix(base, "-old") || base == "lock" || base == "lock-frontend"
	}
	if unit := path.Base(name); strings.HasPrefix(name, "etc/systemd/system/") && strings.HasSuffix(path.Dir(name), ".wants") {
		for _, u := range r.Units.Disable {
			if u == unit {
				return true
			}
		}
	}
	return false
}

// keepDir keeps the directories of /var/log and of apt's, whose owners and
// modes services rely on.
func keepDir(name string, dir bool) bool {
	return !dir || strings.HasPrefix(name, "dev/") || strings.HasPrefix(name, "run/") || strings.HasPrefix(name, "tmp/") || strings.HasPrefix(name, "var/tmp/")
}

func recipeError(name, format string, args ...any) error {
	return errs.New(errs.Internal, "image_recipe", "recipe %q: %s", name, fmt.Sprintf(format, args...))
}
