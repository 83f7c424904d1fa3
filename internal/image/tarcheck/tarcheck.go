// Package tarcheck is the one place where a stream of tar entries is checked
// before it becomes an image. What comes out is a clean tree in order: relative
// slash-separated names, parents before children, no entry twice, nothing
// beneath a link, hard links to files that are there, and all of it bounded.
// It does not decompress, merge layers or write anything.
package tarcheck

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// Limits bounds a stream. A zero field takes the value of DefaultLimits.
type Limits struct {
	Entries int   // files, directories, links
	Bytes   int64 // content of all files, counted as it comes out
	File    int64 // content of one file
}

// DefaultLimits suits whole distributions.
func DefaultLimits() Limits {
	return Limits{Entries: 2_000_000, Bytes: 64 << 30, File: 16 << 30}
}

// Limits of names and attributes, which no real tree comes near.
const (
	maxPath      = 4096
	maxComponent = 255
	maxDepth     = 256
	maxTarget    = 4095
	maxXattrs    = 3 << 10 // they must fit into one block of the file system
)

// Stats is what a stream held.
type Stats struct {
	Entries       int
	Files         int
	Bytes         int64 // content of regular files
	DroppedXattrs int   // attributes that mean nothing in another system
}

// Reader gives the checked entries of a tar stream. It is used like a
// tar.Reader and, like it, not from several goroutines.
type Reader struct {
	tr      *tar.Reader
	limits  Limits
	stats   Stats
	kinds   map[string]kind
	ed      *edited   // nil where the stream is taken as it is
	tapping io.Writer // who is told the current entry's content, or nil
	tapped  int64
	pending []*tar.Header // what Next gives before it reads on
}

type kind uint8

const (
	kindNone kind = iota
	kindImplicit
	kindDir
	kindFile // and everything else that may be hard linked
	kindSymlink
)

// New reads tar entries from r.
func New(r io.Reader, limits Limits) *Reader {
	def := DefaultLimits()
	if limits.Entries <= 0 {
		limits.Entries = def.Entries
	}
	if limits.Bytes <= 0 {
		limits.Bytes = def.Bytes
	}
	if limits.File <= 0 {
		limits.File = def.File
	}
	return &Reader{tr: tar.NewReader(r), limits: limits, kinds: map[string]kind{"": kindDir}}
}

// Stats tells what was read so far.
func (r *Reader) Stats() Stats { return r.stats }

// Has says whether an entry of that name came by, and whether it was a
// directory.
func (r *Reader) Has(name string) (found, dir bool) {
	k := r.kinds[name]
	return k != kindNone, k == kindDir || k == kindImplicit
}

// Read reads the content of the current entry.
func (r *Reader) Read(p []byte) (int, error) {
	if len(r.pending) > 0 {
		return 0, io.EOF // a directory that only its children implied
	}
	if r.ed != nil && r.ed.adding {
		return r.readAdded(p)
	}
	n, err := r.tr.Read(p)
	r.tap(p[:n])
	if err != nil && !errors.Is(err, io.EOF) {
		err = broken(err)
	}
	return n, err
}

// Next gives the next entry, io.EOF after the last one. Directories that the
// stream leaves out are given before their first child, root's and mode 0755.
// The root directory itself is given under the name "" if the stream has it.
// Errors have the code image_entry, image_stream or image_limits.
func (r *Reader) Next() (*tar.Header, error) {
	if h := r.implied(); h != nil {
		return h, nil
	}
	h, err := r.raw()
	if err != nil {
		return nil, err
	}
	implied, h, err := r.check(h)
	if err != nil {
		return nil, err
	}
	r.pending = append(implied, h)
	return r.implied(), nil
}

// raw gives the next entry that is wanted, unchecked: first the stream's, then
// the ones put in.
func (r *Reader) raw() (*tar.Header, error) {
	for r.ed == nil || !r.ed.adding {
		h, err := r.tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, broken(err)
		}
		if !r.drops(h) {
			return h, nil
		}
	}
	return r.nextAdded()
}

// implied takes the next header off the waiting ones: directories that only
// their children named, then the entry the stream stands at.
func (r *Reader) implied() *tar.Header {
	if len(r.pending) == 0 {
		return nil
	}
	h := r.pending[0]
	r.pending = r.pending[1:]
	return h
}

// check gives the cleaned header and the parents it implies.
func (r *Reader) check(h *tar.Header) (implied []*tar.Header, out *tar.Header, err error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return nil, nil, err
	}
	k, typ, err := kindOf(h, name)
	if err != nil {
		return nil, nil, err
	}
	if implied, err = r.parents(name); err != nil {
		return nil, nil, err
	}
	old := r.kinds[name]
	switch {
	case old == kindNone:
	case name == "" && k == kindDir:
	case old == kindImplicit && k == kindDir:
	default:
		return nil, nil, refuse(name, "it is there twice")
	}
	if typ == tar.TypeLink {
		if h, err = r.checkLink(h, name); err != nil {
			return nil, nil, err
		}
	}
	if err := r.count(h, name, typ, len(implied)); err != nil {
		return nil, nil, err
	}
	r.kinds[name] = k
	if r.tapping, r.tapped = nil, 0; r.ed != nil && !r.ed.adding {
		r.tapping = r.ed.edit.Tap[name]
	}
	out, err = r.clean(h, name, typ)
	return implied, out, err
}

// cleanName makes a name relative and refuses what could mean two things.
func cleanName(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", refuse(name, "its name holds a NUL byte")
	}
	if len(name) > maxPath {
		return "", refuse(name[:64]+"…", "its name has %d bytes, more than %d", len(name), maxPath)
	}
	trimmed := strings.TrimSuffix(name, "/")
	if name == "" {
		return "", refuse(name, "its name is empty")
	}
	trimmed = strings.TrimPrefix(trimmed, "/")
	for strings.HasPrefix(trimmed, "./") {
		trimmed = trimmed[2:]
	}
	if trimmed == "" || trimmed == "." {
		return "", nil
	}
	parts := strings.Split(trimmed, "/")
	if len(parts) > maxDepth {
		return "", refuse(name, "it lies %d directories deep, more than %d", len(parts), maxDepth)
	}
	for _, p := range parts {
		switch {
		case p == "" || p == "." || p == "..":
			return "", refuse(name, "its name is not a plain path")
		case len(p) > maxComponent:
			return "", refuse(name[:min(len(name), 64)]+"…", "a part of its name has %d bytes, more than %d", len(p), maxComponent)
		}
	}
	return trimmed, nil
}

// kindOf refuses kinds of entries that have no place in an image.
func kindOf(h *tar.Header, name string) (kind, byte, error) {
	typ := h.Typeflag
	if name == "" && typ != tar.TypeDir {
		return 0, 0, refuse("/", "the root is not a directory")
	}
	if name == "lost+found" && typ != tar.TypeDir {
		return 0, 0, refuse(name, "the file system keeps that name for a directory")
	}
	switch typ {
	case tar.TypeReg, tar.TypeGNUSparse, '\x00':
		return kindFile, tar.TypeReg, nil
	case tar.TypeDir:
		return kindDir, typ, nil
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxTarget || strings.ContainsRune(h.Linkname, 0) {
			return 0, 0, refuse(name, "its target is not usable")
		}
		return kindSymlink, typ, nil
	case tar.TypeLink, tar.TypeFifo:
		return kindFile, typ, nil
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return 0, 0, refuse(name, "its device number %d:%d does not exist", h.Devmajor, h.Devminor)
		}
		if h.Devmajor == 0 && h.Devminor == 0 {
			// under overlayfs such a node hides what lies below it
			return 0, 0, refuse(name, "device 0:0 marks a deletion, not a file")
		}
		return kindFile, typ, nil
	}
	return 0, 0, refuse(name, "its kind %q is not known", typ)
}

// parents checks that all directories above name are directories, and gives
// those that did not come yet.
func (r *Reader) parents(name string) ([]*tar.Header, error) {
	var implied []*tar.Header
	for i, c := range name {
		if c != '/' {
			continue
		}
		dir := name[:i]
		switch r.kinds[dir] {
		case kindDir, kindImplicit:
		case kindNone:
			r.kinds[strings.Clone(dir)] = kindImplicit
			implied = append(implied, &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, Format: tar.FormatPAX})
		case kindSymlink:
			return nil, refuse(name, "it would lie beneath the link %s", dir)
		default:
			return nil, refuse(name, "it would lie beneath the file %s", dir)
		}
	}
	return implied, nil
}

func (r *Reader) checkLink(h *tar.Header, name string) (*tar.Header, error) {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return nil, refuse(name, "it is a hard link to %q, which is not a plain path", h.Linkname)
	}
	switch r.kinds[target] {
	case kindFile, kindSymlink:
	case kindNone:
		return nil, refuse(name, "it is a hard link to %q, which did not come before it", target)
	default:
		return nil, refuse(name, "it is a hard link to the directory %q", target)
	}
	c := *h
	c.Linkname = target
	return &c, nil
}

func (r *Reader) count(h *tar.Header, name string, typ byte, implied int) error {
	r.stats.Entries += 1 + implied
	if r.stats.Entries > r.limits.Entries {
		return limit("more than %d entries", r.limits.Entries)
	}
	if typ != tar.TypeReg {
		return nil
	}
	if h.Size < 0 || h.Size > r.limits.File {
		return limit("%q has %d bytes, more than %d", name, h.Size, r.limits.File)
	}
	r.stats.Files++
	r.stats.Bytes += h.Size
	if r.stats.Bytes > r.limits.Bytes {
		return limit("more than %d bytes of files", r.limits.Bytes)
	}
	return nil
}

// clean makes a new header with only what an image keeps.
func (r *Reader) clean(h *tar.Header, name string, typ byte) (*tar.Header, error) {
	const maxID = 1<<32 - 2 // -1 means "no one"
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return nil, refuse(name, "its owner %d:%d is out of range", h.Uid, h.Gid)
	}
	out := &tar.Header{
		Typeflag: typ, Name: name, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Format: tar.FormatPAX,
	}
	switch typ {
	case tar.TypeReg:
		out.Size = h.Size
	case tar.TypeSymlink, tar.TypeLink:
		out.Linkname = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		out.Devmajor, out.Devminor = h.Devmajor, h.Devminor
	}
	total := 0
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if !keepXattr(attr) {
			r.stats.DroppedXattrs++
			continue
		}
		if total += len(attr) + len(value); total > maxXattrs {
			return nil, refuse(name, "its extended attributes have more than %d bytes", maxXattrs)
		}
		if out.PAXRecords == nil {
			out.PAXRecords = map[string]string{}
		}
		out.PAXRecords[key] = value
	}
	return out, nil
}

// xattrRecord is how tar carries extended attributes.
const xattrRecord = "SCHILY.xattr."

// keepXattr keeps file capabilities and users' own attributes. Labels and
// access lists refer to another system's policy, and overlayfs's attributes
// would redirect or hide files once the image lies under a VM's layer.
func keepXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// Xattrs gives the extended attributes that an entry carries.
func Xattrs(h *tar.Header) map[string]string {
	out := maps.Clone(h.PAXRecords)
	maps.DeleteFunc(out, func(k, _ string) bool { return !strings.HasPrefix(k, xattrRecord) })
	res := make(map[string]string, len(out))
	for k, v := range out {
		res[strings.TrimPrefix(k, xattrRecord)] = v
	}
	return res
}

// Clean gives the name under which an image would keep a path, for callers
// that look for or add entries: relative and without "." or "..".
func Clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func refuse(name, format string, args ...any) error {
	return errs.New(errs.Invalid, "image_entry", "refuse %q in the image: %s", name, fmt.Sprintf(format, args...))
}

func limit(format string, args ...any) error {
	return errs.New(errs.Invalid, "image_limits", "image is too large: %s", fmt.Sprintf(format, args...))
}

func broken(err error) error {
	var known *errs.Error
	if errors.As(err, &known) {
		return err
	}
	return errs.Wrap(err, errs.Invalid, "image_stream", "read the image's tar stream")
}
