package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"io"

	"github.com/banger-dev/banger/internal/errs"
)

// Relay passes a hostile tar stream on to another guest, To in the place of
// From in every name. What Unpack refuses for its name or kind is left out
// here too; links stay as they are, since the other guest follows them in its
// own files only.
func Relay(ctx context.Context, w io.Writer, r io.Reader, from, to string, progress Progress) (Summary, error) {
	u := &unpacker{o: UnpackOptions{From: from, To: to}}
	tr, tw := tar.NewReader(r), tar.NewWriter(w)
	out := &sending{&packer{ctx: ctx, tw: tw, progress: progress}}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			u.sum.Bytes = out.p.sum.Bytes
			return u.sum, tw.Close()
		}
		if err != nil {
			return u.sum, streamError(err)
		}
		if u.sum.Entries >= MaxEntries {
			return u.sum, errs.New(errs.Exhausted, "too_many_files", "more than %d files", MaxEntries)
		}
		n, why := u.relayed(h)
		if why != "" {
			u.sum.refuse(h.Name, why)
			continue
		}
		u.sum.Entries++
		if err := tw.WriteHeader(n); err != nil {
			return u.sum, err
		}
		if n.Typeflag == tar.TypeReg {
			if _, err := io.Copy(out, tr); err != nil {
				return u.sum, err
			}
		}
	}
}

// relayed is the header of an entry for the other guest.
func (u *unpacker) relayed(h *tar.Header) (*tar.Header, string) {
	name, why := cleanName(h.Name)
	if why == "" {
		name, why = u.renamed(name)
	}
	if why != "" {
		return nil, why
	}
	n := &tar.Header{Typeflag: h.Typeflag, Name: name, Mode: h.Mode & 0o777, ModTime: h.ModTime, Format: tar.FormatPAX}
	switch h.Typeflag {
	case tar.TypeDir:
		n.Name += "/"
	case tar.TypeReg:
		n.Size = h.Size
	case tar.TypeSymlink:
		n.Linkname = h.Linkname
	case tar.TypeLink:
		target, why := cleanName(h.Linkname)
		if why == "" {
			target, why = u.renamed(target)
		}
		if why != "" {
			return nil, "is a hard link to what was not copied"
		}
		n.Linkname = target
	default:
		return nil, "is a device, pipe or socket"
	}
	return n, ""
}
