package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
)

// Source is a file or directory of the host and the name it gets in the
// stream; the name "." stands for a directory's content.
type Source struct{ Path, Name string }

// Measure counts what Pack would send.
func Measure(ctx context.Context, sources []Source) (Summary, error) {
	var s Summary
	for _, src := range sources {
		err := filepath.WalkDir(src.Path, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if ctx.Err() != nil {
				return errs.Wrap(ctx.Err(), errs.Cancelled, "cancelled", "interrupted")
			}
			s.Entries++
			if d.Type().IsRegular() {
				if st, err := d.Info(); err == nil {
					s.Bytes += uint64(st.Size())
				}
			}
			return nil
		})
		if err != nil {
			return s, hostError(err, src.Path)
		}
	}
	return s, nil
}

func hostError(err error, p string) error {
	var e *errs.Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.NotFound, "file_not_found", "no %q here", p)
	case errors.Is(err, fs.ErrPermission):
		return errs.Wrap(err, errs.Denied, "file_denied", "cannot read it")
	}
	return errs.Wrap(err, errs.Invalid, "file_unreadable", "cannot read %q", p)
}

// Pack writes files and directories as a tar stream: modes, times and links
// stay, owners do not, links are not followed; sockets, pipes and devices are
// left out and named in the summary.
func Pack(ctx context.Context, w io.Writer, sources []Source, progress Progress) (Summary, error) {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), progress: progress}
	for _, src := range sources {
		err := filepath.WalkDir(src.Path, func(at string, _ fs.DirEntry, err error) error {
			if err != nil {
				return hostError(err, at)
			}
			rel, err := filepath.Rel(src.Path, at)
			if err != nil {
				return err
			}
			return p.add(at, path.Join(src.Name, filepath.ToSlash(rel)))
		})
		if err != nil {
			return p.sum, err
		}
	}
	return p.sum, p.tw.Close()
}

type packer struct {
	ctx      context.Context
	tw       *tar.Writer
	sum      Summary
	progress Progress
}

func (p *packer) add(at, name string) error {
	if p.ctx.Err() != nil {
		return errs.Wrap(p.ctx.Err(), errs.Cancelled, "cancelled", "interrupted")
	}
	st, err := os.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went while we walked
	}
	if err != nil {
		return hostError(err, at)
	}
	target := ""
	switch {
	case st.Mode().IsRegular(), st.IsDir():
	case st.Mode()&fs.ModeSymlink != 0:
		if target, err = os.Readlink(at); err != nil {
			return hostError(err, at)
		}
	default:
		p.sum.refuse(at, "is a device, pipe or socket")
		return nil
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm()), ModTime: st.ModTime(), Format: tar.FormatPAX, Linkname: target}
	switch {
	case st.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case target != "":
		h.Typeflag = tar.TypeSymlink
	default:
		return p.file(at, h)
	}
	p.sum.Entries++
	return p.tw.WriteHeader(h)
}

// file sends a regular file at the size it has when opened; one that shrinks
// meanwhile is an error, what is appended to it is not sent.
func (p *packer) file(at string, h *tar.Header) error {
	f, err := os.OpenFile(at, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return hostError(err, at)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		p.sum.refuse(at, "changed while it was read")
		return nil
	}
	h.Typeflag, h.Size, h.Mode = tar.TypeReg, st.Size(), int64(st.Mode().Perm())
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(&sending{p}, io.LimitReader(f, h.Size))
	if err != nil {
		return err
	}
	if n != h.Size {
		return errs.New(errs.Conflict, "file_changed", "%q became shorter while it was read", at).WithHint("try again when nobody writes to it")
	}
	p.sum.Entries++
	return nil
}

// sending counts what goes into the stream.
type sending struct{ p *packer }

func (s *sending) Write(b []byte) (int, error) {
	if err := s.p.ctx.Err(); err != nil {
		return 0, fmt.Errorf("interrupted: %w", err)
	}
	n, err := s.p.tw.Write(b)
	s.p.sum.Bytes += uint64(n)
	s.p.progress.tell(s.p.sum.Bytes)
	return n, err
}
