// Package workspace copies a directory of the host into a guest: a git
// repository as it stands (tracked files as modified, untracked ones that are
// not ignored, its history), or a plain directory as it is. It makes one tar
// stream without a copy on the host's disk; unpacking is the guest's. Nothing
// on the host is written, and no code of the repository runs.
package workspace

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// GuestPath is where a workspace lies in the guest unless said otherwise.
const GuestPath = "/root/repo"

// maxEntries bounds the number of files of a workspace.
const maxEntries = 2_000_000

// Tree is what is to be copied, found but not read yet.
type Tree struct {
	// Root is the directory that becomes the guest path, absolute.
	Root string
	// Sub is where below Root the user pointed ("" for Root itself).
	Sub string
	// Git says that Root is a git repository's working tree.
	Git    bool
	Head   string // commit, "" before the first one
	Branch string // "" when detached
	// Paths are the entries relative to Root, sorted, directories not
	// listed unless empty.
	Paths    []string
	Bytes    int64
	Warnings []string

	meta   []metaFile // what is put under .git
	config string
}

// metaFile is one file of git's own: where it lies and its name under .git.
type metaFile struct{ host, name string }

// Inspect finds what would be copied. A path inside a repository means the
// whole repository. Errors: workspace_not_found, workspace_not_directory,
// git_missing.
func Inspect(ctx context.Context, path string) (*Tree, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "workspace_not_found", "no directory %s", path).
			WithHint("a path is copied into the VM; a command goes after --, an image after --image")
	}
	if err != nil {
		return nil, errs.Wrap(err, errs.Invalid, "workspace_unreadable", "cannot look at %s", path)
	}
	if !st.IsDir() {
		return nil, errs.New(errs.Invalid, "workspace_not_directory", "%s is not a directory", path).
			WithHint("name the directory it is in; a command goes after --")
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, err
	}
	t := &Tree{Root: abs}
	g := git{dir: abs}
	top, err := g.ask(ctx, "rev-parse", "--show-toplevel")
	switch {
	case err == nil && top != "":
		if top, err = filepath.EvalSymlinks(top); err != nil {
			return nil, err
		}
		if rel, rerr := filepath.Rel(top, abs); rerr == nil && rel != "." {
			t.Sub = rel
		}
		t.Root, t.Git = top, true
		err = t.inspectGit(ctx)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case insideGit(abs):
		// git knows of a repository and refuses (ownership, damage): a
		// plain copy would lose the history without a word.
		return nil, errs.Wrap(err, errs.Invalid, "workspace_git_refused", "git does not read the repository at %s", path)
	default:
		err = t.inspectPlain()
	}
	if err != nil {
		return nil, err
	}
	sort.Strings(t.Paths)
	return t, nil
}

func insideGit(dir string) bool {
	for {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}

func (t *Tree) inspectGit(ctx context.Context) error {
	g := git{dir: t.Root}
	t.Head, _ = g.ask(ctx, "rev-parse", "--verify", "-q", "HEAD")
	t.Branch, _ = g.ask(ctx, "symbolic-ref", "-q", "--short", "HEAD")
	seen := map[string]bool{}
	err := g.each(ctx, func(name string) error {
		nested := strings.HasSuffix(name, "/")
		name = strings.TrimSuffix(name, "/")
		if !filepath.IsLocal(name) || seen[name] {
			return nil
		}
		seen[name] = true
		return t.addGitPath(name, nested)
	}, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	own, common, err := g.gitDirs(ctx)
	if err != nil {
		return err
	}
	if t.config, err = g.guestConfig(ctx); err != nil {
		return err
	}
	return t.collectMeta(own, common)
}

// addGitPath adds what git lists, as it stands in the working tree now.
func (t *Tree) addGitPath(name string, nested bool) error {
	st, err := os.Lstat(filepath.Join(t.Root, name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
		return nil // deleted in the working tree
	}
	if err != nil {
		return err
	}
	switch {
	case nested:
		t.warn("%s is a repository of its own and was left out", name)
		return nil
	case st.IsDir(): // a submodule
		t.warn("submodule %s was left empty", name)
		return t.add(name, 0)
	case st.Mode().IsRegular():
		return t.add(name, st.Size())
	case st.Mode()&fs.ModeSymlink != 0:
		t.checkLink(name)
		return t.add(name, 0)
	}
	t.warn("%s is neither a file nor a link and was left out", name)
	return nil
}

func (t *Tree) inspectPlain() error {
	return filepath.WalkDir(t.Root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(t.Root, p)
		if err != nil || rel == "." {
			return err
		}
		switch {
		case d.IsDir():
			return t.add(rel, 0)
		case d.Type().IsRegular():
			st, err := d.Info()
			if err != nil {
				return err
			}
			return t.add(rel, st.Size())
		case d.Type()&fs.ModeSymlink != 0:
			t.checkLink(rel)
			return t.add(rel, 0)
		}
		t.warn("%s is neither a file nor a link and was left out", rel)
		return nil
	})
}

func (t *Tree) add(name string, size int64) error {
	if len(t.Paths) >= maxEntries {
		return errs.New(errs.Invalid, "workspace_too_large", "%s has more than %d files", t.Root, maxEntries)
	}
	t.Paths = append(t.Paths, name)
	t.Bytes += size
	return nil
}

// checkLink warns of a link that leads out of the workspace: it is copied as a
// link and what it points to is not.
func (t *Tree) checkLink(name string) {
	to, err := os.Readlink(filepath.Join(t.Root, name))
	if err != nil {
		return
	}
	if filepath.IsAbs(to) || !filepath.IsLocal(filepath.Join(filepath.Dir(name), to)) {
		t.warn("%s points outside the workspace (%s): the link was copied, what it points to was not", name, to)
	}
}
