package fsx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyChunk bounds how long one system call copies before ctx is looked at.
const copyChunk = 32 << 20

// CopySparse makes dst, which must not exist, a copy of src with the same
// size, mode and holes. Where the file system can share blocks (XFS, btrfs,
// bcachefs) it does, and the copy costs nothing; elsewhere only data is
// copied. On failure, or when ctx ends, dst is removed.
func CopySparse(ctx context.Context, src, dst string) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return &os.PathError{Op: "copy", Path: src, Err: errors.New("not a regular file")}
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(dst))
		}
	}()
	if err := out.Chmod(st.Mode().Perm()); err != nil {
		return err
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	return copyData(ctx, in, out, st.Size())
}

// CopyInto overwrites dst, an open file, with src's data and holes, sharing
// blocks where it can. dst is truncated first.
func CopyInto(ctx context.Context, dst *os.File, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(0); err != nil {
		return err
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(in.Fd())) == nil {
		return nil
	}
	return copyData(ctx, in, dst, st.Size())
}

// copyData copies the data extents of in; out is empty.
func copyData(ctx context.Context, in, out *os.File, size int64) error {
	if err := out.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		end := size
		switch {
		case err == nil:
			if end, err = unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE); err != nil {
				return &os.PathError{Op: "seek", Path: in.Name(), Err: err}
			}
		case errors.Is(err, unix.EINVAL): // no holes on this file system
			start = off
		default:
			return &os.PathError{Op: "seek", Path: in.Name(), Err: err}
		}
		if err := copyRange(ctx, in, out, start, min(end, size)); err != nil {
			return err
		}
		off = end
	}
	return nil
}

func copyRange(ctx context.Context, in, out *os.File, off, end int64) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("copy %s: %w", in.Name(), context.Cause(ctx))
		}
		roff, woff := off, off
		n, err := unix.CopyFileRange(int(in.Fd()), &roff, int(out.Fd()), &woff, int(min(end-off, copyChunk)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case cannotCopyRange(err) || (err == nil && n == 0):
			m, err := io.CopyN(io.NewOffsetWriter(out, off), io.NewSectionReader(in, off, end-off), min(end-off, copyChunk))
			if err != nil {
				return fmt.Errorf("copy %s: %w", in.Name(), err)
			}
			n = int(m)
		case err != nil:
			return &os.PathError{Op: "copy_file_range", Path: out.Name(), Err: err}
		}
		off += int64(n)
	}
	return nil
}

// cannotCopyRange says that the kernel does not copy between these files by
// itself.
func cannotCopyRange(err error) bool {
	return errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}
