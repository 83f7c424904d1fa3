package transfer

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/units"
)

// checkEvery is how much is written between two looks at the free space.
const checkEvery = 16 << 20

// UnpackOptions say what becomes of the entries.
type UnpackOptions struct {
	// From is the first part of the entries' names, To takes its place
	// ("." for both: the names stay).
	From, To string
	Progress Progress
	// floor overrides the free space that stays, for tests (bytes).
	floor uint64
}

// Unpack writes a tar stream beneath root, which the caller opened at dir.
// Files appear whole, under a temporary name first. What is refused is in the
// summary; an error ends the copy and leaves what was complete.
func Unpack(ctx context.Context, r io.Reader, dir string, o UnpackOptions) (Summary, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Summary{}, errs.Wrap(err, errs.Invalid, "destination", "cannot write there")
	}
	defer root.Close()
	d, err := os.Open(dir)
	if err != nil {
		return Summary{}, errs.Wrap(err, errs.Invalid, "destination", "cannot write there")
	}
	defer d.Close()
	u := &unpacker{ctx: ctx, root: root, o: o, space: space{dir: d, floor: o.floor}, files: map[string]bool{}}
	err = u.all(tar.NewReader(r))
	if derr := u.finishDirs(); err == nil {
		err = derr
	}
	return u.sum, err
}

type unpacker struct {
	ctx   context.Context
	root  *os.Root
	o     UnpackOptions
	space space
	sum   Summary
	since uint64 // bytes since the last look at the free space
	files map[string]bool
	dirs  []madeDir
}

// madeDir is a directory whose mode and time are set when all is in it.
type madeDir struct {
	name  string
	mode  fs.FileMode
	mtime time.Time
}

func (u *unpacker) all(tr *tar.Reader) error {
	for {
		if err := u.ctx.Err(); err != nil {
			return errs.Wrap(err, errs.Cancelled, "cancelled", "interrupted")
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return streamError(err)
		}
		if u.sum.Entries++; u.sum.Entries > MaxEntries {
			return errs.New(errs.Exhausted, "too_many_files", "more than %d files", MaxEntries)
		}
		if u.sum.Entries%1000 == 0 {
			if err := u.space.room(0); err != nil {
				return err
			}
		}
		if err := u.entry(h, tr); err != nil {
			return err
		}
	}
}

// streamError keeps a failure of the stream's source and names the others.
func streamError(err error) error {
	var e *errs.Error
	if errors.As(err, &e) {
		return err
	}
	return errs.Wrap(err, errs.Unavailable, "tar_stream", "the stream of files is damaged")
}

// entry writes one entry, or notes why not.
func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	name, why := cleanName(h.Name)
	if why == "" {
		if name, why = u.renamed(name); why == "" {
			why = u.place(h, name)
		}
	}
	if why != "" {
		u.sum.refuse(h.Name, why)
		return nil
	}
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.dir(h, name)
	case tar.TypeReg:
		err = u.file(h, name, r)
	case tar.TypeSymlink:
		err = u.link(h, name)
	case tar.TypeLink:
		err = u.hardlink(h, name)
	default:
		u.sum.refuse(h.Name, "is a device, pipe or socket")
		return nil
	}
	var conflict *errs.Error
	if err != nil && !errors.As(err, &conflict) {
		return errs.Wrap(err, errs.Invalid, "unpack", "cannot write %q", name)
	}
	return err
}

// renamed puts To in From's place.
func (u *unpacker) renamed(name string) (string, string) {
	switch {
	case u.o.From == ".":
		return path.Join(u.o.To, name), ""
	case name == u.o.From:
		return u.o.To, ""
	case len(name) > len(u.o.From) && name[:len(u.o.From)+1] == u.o.From+"/":
		return path.Join(u.o.To, name[len(u.o.From)+1:]), ""
	}
	return "", "was not asked for"
}

// place makes the directory that an entry lies in, and says why the entry
// cannot be there.
func (u *unpacker) place(h *tar.Header, name string) string {
	parent := path.Dir(name)
	if err := u.root.MkdirAll(parent, 0o777); err != nil {
		return "its directory cannot be made: " + reason(err)
	}
	if h.Typeflag == tar.TypeSymlink && !linkInside(name, h.Linkname) {
		return "is a link to the outside (" + h.Linkname + ")"
	}
	st, err := u.root.Lstat(name)
	if err != nil || name == "." {
		return ""
	}
	if isDir := h.Typeflag == tar.TypeDir; st.IsDir() != isDir && (isDir || st.IsDir()) {
		if isDir && st.Mode()&fs.ModeSymlink != 0 {
			if to, err := u.root.Stat(name); err == nil && to.IsDir() {
				return "" // the user's own link to a directory
			}
		}
		if isDir {
			return "is a directory, and here it is a file"
		}
		return "is a file, and here it is a directory"
	}
	return ""
}

func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

func (u *unpacker) dir(h *tar.Header, name string) error {
	if err := u.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	} else if err == nil {
		u.dirs = append(u.dirs, madeDir{name, fs.FileMode(h.Mode) & 0o777, h.ModTime})
	}
	return nil
}

// finishDirs gives the directories that were made their modes and times, the
// innermost first.
func (u *unpacker) finishDirs() error {
	var first error
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		err := u.root.Chtimes(d.name, d.mtime, d.mtime)
		if cerr := u.root.Chmod(d.name, d.mode); err == nil {
			err = cerr
		}
		if err != nil && first == nil {
			first = errs.Wrap(err, errs.Invalid, "unpack", "cannot finish %q", d.name)
		}
	}
	return first
}

func temporary(name string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return path.Join(path.Dir(name), ".banger-"+hex.EncodeToString(b[:]))
}

func (u *unpacker) file(h *tar.Header, name string, r io.Reader) (err error) {
	if err := u.space.room(uint64(max(h.Size, 0))); err != nil {
		return err
	}
	tmp := temporary(name)
	f, err := u.root.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = u.root.Remove(tmp)
		}
	}()
	_, err = io.Copy(&counted{u, f}, r)
	if err == nil {
		err = f.Chmod(fs.FileMode(h.Mode) & 0o777)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return streamOrDisk(err)
	}
	if err := u.root.Chtimes(tmp, h.ModTime, h.ModTime); err != nil {
		return err
	}
	if err := u.root.Rename(tmp, name); err != nil {
		return err
	}
	u.files[name] = true
	return nil
}

// streamOrDisk tells a failure of the source from one of this disk.
func streamOrDisk(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return err
	}
	return streamError(err)
}

// counted counts what is written and watches the free space.
type counted struct {
	u *unpacker
	f *os.File
}

func (c *counted) Write(p []byte) (int, error) {
	if err := c.u.ctx.Err(); err != nil {
		return 0, errs.Wrap(err, errs.Cancelled, "cancelled", "interrupted")
	}
	if c.u.since += uint64(len(p)); c.u.since >= checkEvery {
		c.u.since = 0
		if err := c.u.space.room(0); err != nil {
			return 0, err
		}
	}
	n, err := c.f.Write(p)
	c.u.sum.Bytes += uint64(n)
	c.u.o.Progress.tell(c.u.sum.Bytes)
	return n, err
}

func (u *unpacker) link(h *tar.Header, name string) error {
	tmp := temporary(name)
	if err := u.root.Symlink(h.Linkname, tmp); err != nil {
		return err
	}
	if err := u.root.Rename(tmp, name); err != nil {
		_ = u.root.Remove(tmp)
		return err
	}
	delete(u.files, name)
	return nil
}

// hardlink joins two files of this very copy; a link to anything else would
// give a guest a hold on a file of the host.
func (u *unpacker) hardlink(h *tar.Header, name string) error {
	target, why := cleanName(h.Linkname)
	if why == "" {
		target, why = u.renamed(target)
	}
	if why != "" || !u.files[target] {
		u.sum.refuse(h.Name, "is a hard link to what was not copied ("+h.Linkname+")")
		return nil
	}
	if target == name {
		return nil
	}
	tmp := temporary(name)
	if err := u.root.Link(target, tmp); err != nil {
		return err
	}
	if err := u.root.Rename(tmp, name); err != nil {
		_ = u.root.Remove(tmp)
		return err
	}
	u.files[name] = true
	return nil
}

func sizeText(n uint64) string { return units.FormatSize(int64(min(n, 1<<62))) }
