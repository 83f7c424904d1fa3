package workspace

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

var errNotDir error = syscall.ENOTDIR

// maxWarnings bounds what is told of one workspace.
const maxWarnings = 50

func (t *Tree) warn(format string, args ...any) {
	if len(t.Warnings) < maxWarnings {
		t.Warnings = append(t.Warnings, fmt.Sprintf(format, args...))
	}
}

// metaDirs and metaFiles are what of a .git directory makes the guest's copy a
// working repository: objects, references, index, and states a user may be in
// the middle of. Hooks, config, logs of other things and worktrees stay behind.
var (
	metaCommon = []string{"objects", "refs", "packed-refs", "shallow", "info/exclude", "info/attributes", "info/grafts"}
	metaOwn    = []string{
		"HEAD", "index", "ORIG_HEAD", "MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "CHERRY_PICK_HEAD", "REVERT_HEAD",
		"BISECT_LOG", "rebase-merge", "rebase-apply", "sequencer", "info/sparse-checkout", "refs/bisect",
	}
)

// collectMeta lists git's own files that go along, objects of alternates
// included (the copy must stand alone).
func (t *Tree) collectMeta(own, common string) error {
	seen := map[string]bool{}
	take := func(base string, names []string) error {
		for _, n := range names {
			err := filepath.WalkDir(filepath.Join(base, n), func(p string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err != nil {
					return err
				}
				rel, err := filepath.Rel(base, p)
				if err != nil {
					return err
				}
				if !d.Type().IsRegular() || strings.HasSuffix(rel, ".lock") || strings.HasPrefix(rel, "objects/info/") || strings.Contains(rel, "/tmp_obj_") || seen[rel] {
					return nil
				}
				seen[rel] = true
				st, err := d.Info()
				if err != nil {
					return nil // gone meanwhile: git moves objects about
				}
				t.meta = append(t.meta, metaFile{host: p, name: rel})
				t.Bytes += st.Size()
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := take(own, metaOwn); err != nil {
		return err
	}
	if err := take(common, metaCommon); err != nil {
		return err
	}
	for _, alt := range alternates(filepath.Join(common, "objects"), 5) {
		// an alternate is an objects directory itself
		if err := take(filepath.Dir(alt), []string{filepath.Base(alt)}); err != nil {
			return err
		}
	}
	return nil
}

// alternates lists the object directories that one borrows from, depth deep.
func alternates(objects string, depth int) []string {
	data, err := os.ReadFile(filepath.Join(objects, "info", "alternates"))
	if err != nil || depth == 0 {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !filepath.IsAbs(line) {
			line = filepath.Join(objects, line)
		}
		if filepath.Base(line) != "objects" {
			continue
		}
		out = append(out, line)
		out = append(out, alternates(line, depth-1)...)
	}
	return out
}

// Written says what WriteTar wrote.
type Written struct {
	Files uint64
	Bytes uint64
}

// WriteTar writes the tree as a tar stream, names relative to the guest path.
// Files that vanish meanwhile are left out; one that shrinks while it is read
// is an error, for half a file must not pass as one. report may be nil.
func (t *Tree) WriteTar(ctx context.Context, w io.Writer, report func(done, total int64)) (Written, error) {
	tw := &treeWriter{ctx: ctx, tw: tar.NewWriter(w), report: report, total: t.Bytes, made: map[string]bool{}}
	root, err := os.OpenRoot(t.Root)
	if err != nil {
		return Written{}, err
	}
	defer root.Close()
	for _, name := range t.Paths {
		if err := tw.entry(root, name); err != nil {
			return tw.w, fmt.Errorf("%s: %w", name, err)
		}
	}
	if t.Git {
		if err := tw.gitDir(t); err != nil {
			return tw.w, err
		}
	}
	return tw.w, tw.tw.Close()
}

type treeWriter struct {
	ctx    context.Context
	tw     *tar.Writer
	report func(done, total int64)
	total  int64
	w      Written
	made   map[string]bool
}

// parents writes the directories above a name once, so that modes are kept.
func (w *treeWriter) parents(root *os.Root, name string) error {
	dir := filepath.Dir(name)
	if dir == "." || w.made[dir] {
		return nil
	}
	if err := w.parents(root, dir); err != nil {
		return err
	}
	w.made[dir] = true
	st, err := root.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return errors.New("a directory above it became something else")
	}
	return w.header(st, dir, "")
}

func (w *treeWriter) entry(root *os.Root, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if err := w.parents(root, name); err != nil {
		return err
	}
	st, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case st.IsDir():
		if w.made[name] {
			return nil
		}
		w.made[name] = true
		return w.header(st, name, "")
	case st.Mode()&fs.ModeSymlink != 0:
		to, err := root.Readlink(name)
		if err != nil {
			return err
		}
		return w.header(st, name, to)
	case st.Mode().IsRegular():
		// O_NONBLOCK: a file that became a FIFO meanwhile must not hang us
		f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return w.file(f, name)
	}
	return nil
}

func (w *treeWriter) header(st fs.FileInfo, name, link string) error {
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name = filepath.ToSlash(name)
	if st.IsDir() {
		h.Name += "/"
	}
	h.Mode &= 0o777 // setuid and the like are the host's business
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.ModTime = st.ModTime().Truncate(time.Nanosecond)
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Format = tar.FormatPAX
	w.w.Files++
	return w.tw.WriteHeader(h)
}

func (w *treeWriter) file(f *os.File, name string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return nil
	}
	if err := w.header(st, name, ""); err != nil {
		return err
	}
	n, err := io.Copy(w.tw, &ctxReader{ctx: w.ctx, r: io.LimitReader(f, st.Size()), w: w})
	if err != nil {
		return err
	}
	if n != st.Size() {
		return errors.New("it shrank while it was copied: try again")
	}
	return nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
	w   *treeWriter
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.w.w.Bytes += uint64(n)
	if c.w.report != nil {
		c.w.report(int64(c.w.w.Bytes), c.w.total)
	}
	return n, err
}

// gitDir writes .git: the collected files, then the config made for the guest.
func (w *treeWriter) gitDir(t *Tree) error {
	now := time.Now()
	for _, d := range []string{".git", ".git/objects", ".git/refs", ".git/refs/heads", ".git/info"} {
		w.made[d] = true
		if err := w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: now}); err != nil {
			return err
		}
	}
	for _, m := range t.meta {
		name := filepath.ToSlash(filepath.Join(".git", m.name))
		for _, dir := range dirsAbove(name) {
			if w.made[dir] {
				continue
			}
			w.made[dir] = true
			if err := w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: now}); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(m.host, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = w.file(f, name)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	err := w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: ".git/config", Mode: 0o644, Size: int64(len(t.config)), ModTime: now})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w.tw, t.config)
	return err
}

// dirsAbove gives the directories above a slashed name, outermost first.
func dirsAbove(name string) []string {
	var out []string
	for i, c := range name {
		if c == '/' {
			out = append(out, name[:i])
		}
	}
	return out
}
