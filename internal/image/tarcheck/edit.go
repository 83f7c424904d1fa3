package tarcheck

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"time"
)

// Edit changes a stream on its way into an image: entries left out, files put
// in last. What is put in replaces an entry of the same name, and passes the
// same checks as the rest, so it is never placed through one of the image's
// own links.
type Edit struct {
	// Drop says which entries stay out. The content of a directory that is
	// dropped must be dropped too, or the directory comes back with it. It is
	// asked for names as Clean gives them. May be nil.
	Drop func(name string, dir bool) bool
	Add  []File
	// More gives further files to put in. It is called once, after the stream
	// has ended, so it can wait for what is made meanwhile. May be nil.
	More func() ([]File, error)
	// Tap is told the content of the named entries as it passes, at most
	// tapLimit bytes of each. A dropped entry is not seen.
	Tap map[string]io.Writer
}

// tapLimit bounds what a Tap can be made to hold in memory.
const tapLimit = 64 << 20

// File is one entry to put in, owned by root.
type File struct {
	Name    string // as Clean gives it
	Mode    int64  // permission bits; a directory's end in Dir
	Dir     bool
	Link    string // target of a symbolic link, if it is one
	Data    []byte
	ModTime time.Time
	// Open gives the content instead of Data, Size bytes of it.
	Open func() (io.ReadCloser, error)
	Size int64
}

// edited is a Reader's state for an Edit.
type edited struct {
	edit     Edit
	replaced map[string]bool
	adding   bool
	content  io.ReadCloser
	left     int64
}

// Apply makes the reader edit the stream. It is called once, before Next.
func (r *Reader) Apply(e Edit) {
	r.ed = &edited{edit: e, replaced: make(map[string]bool, len(e.Add))}
	for _, f := range e.Add {
		if !f.Dir {
			r.ed.replaced[f.Name] = true
		}
	}
}

// drops says whether the entry stays out of the image.
func (r *Reader) drops(h *tar.Header) bool {
	if r.ed == nil || r.ed.adding {
		return false
	}
	name, err := cleanName(h.Name)
	if err != nil || name == "" {
		return false // the check will say what is wrong
	}
	dir := h.Typeflag == tar.TypeDir
	if r.ed.replaced[name] && !dir {
		return true
	}
	return r.ed.edit.Drop != nil && r.ed.edit.Drop(name, dir)
}

// nextAdded gives the next file to put in, io.EOF after the last.
func (r *Reader) nextAdded() (*tar.Header, error) {
	if r.ed == nil {
		return nil, io.EOF
	}
	r.ed.adding = true
	if err := r.closeAdded(); err != nil {
		return nil, err
	}
	if err := r.callMore(); err != nil {
		return nil, err
	}
	for len(r.ed.edit.Add) > 0 {
		f := r.ed.edit.Add[0]
		r.ed.edit.Add = r.ed.edit.Add[1:]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: f.Mode, ModTime: f.ModTime, Size: int64(len(f.Data))}
		switch {
		case f.Dir:
			if _, dir := r.Has(f.Name); dir {
				continue // the image's own stays as it is
			}
			h.Typeflag, h.Size = tar.TypeDir, 0
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
		case f.Open != nil:
			c, err := f.Open()
			if err != nil {
				return nil, err
			}
			r.ed.content, r.ed.left, h.Size = c, f.Size, f.Size
		default:
			r.ed.content, r.ed.left = io.NopCloser(bytes.NewReader(f.Data)), int64(len(f.Data))
		}
		return h, nil
	}
	return nil, io.EOF
}

// callMore asks once for the files that were made while the stream ran.
func (r *Reader) callMore() error {
	more := r.ed.edit.More
	if more == nil {
		return nil
	}
	r.ed.edit.More = nil
	files, err := more()
	r.ed.edit.Add = append(r.ed.edit.Add, files...)
	return err
}

// tap passes content on to whoever asked for it.
func (r *Reader) tap(p []byte) {
	if r.tapping == nil || r.tapped > tapLimit {
		return
	}
	r.tapped += int64(len(p))
	if _, err := r.tapping.Write(p); err != nil {
		r.tapping = nil
	}
}

// readAdded reads the content of a file put in; it has exactly its size.
func (r *Reader) readAdded(p []byte) (int, error) {
	if r.ed.left == 0 || r.ed.content == nil {
		return 0, io.EOF
	}
	if int64(len(p)) > r.ed.left {
		p = p[:r.ed.left]
	}
	n, err := r.ed.content.Read(p)
	r.ed.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 || r.ed.left > 0 {
			return n, io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// closeAdded ends the file that was put in last.
func (r *Reader) closeAdded() error {
	if r.ed.content == nil {
		return nil
	}
	err := r.ed.content.Close()
	r.ed.content, r.ed.left = nil, 0
	return err
}
