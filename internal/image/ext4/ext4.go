// Package ext4 turns a stream of tar entries into a read-only ext4 file system
// in one pass, without root, without mounting and without unpacking to a
// directory. The same entries always give the same bytes.
//
// What it writes has no journal and refuses to be mounted for writing: it is a
// base that many VMs share. Disks that are written to are internal/disk's.
package ext4

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/image/tarcheck"
)

// Options of FromTar.
type Options struct {
	// Label is the file system's name, at most 16 bytes. Its UUID follows
	// from it.
	Label string
	// MaxSize bounds the image in bytes; 0 means 64 GiB.
	MaxSize int64
	Limits  tarcheck.Limits
	Edit    tarcheck.Edit
	// Progress is told the bytes of content written so far, often. May be nil.
	Progress func(written int64)
}

// Info is what FromTar made.
type Info struct {
	Digest string // "sha256:…" of the file
	Size   int64  // bytes of the file
	tarcheck.Stats
	// Has says whether the image holds a path.
	Has func(name string) bool
}

const defaultMaxSize = 64 << 30

// FromTar writes the tar stream r to dst as ext4. The file appears under dst,
// which is replaced, only when it is whole and on disk; its mode is 0444. On
// failure, or when ctx ends, nothing is left. Codes: those of tarcheck, and
// disk_full.
func FromTar(ctx context.Context, r io.Reader, dst string, opts Options) (Info, error) {
	if len(opts.Label) > labelLen {
		return Info{}, errs.New(errs.Invalid, "image_label", "image label %q is longer than %d bytes", opts.Label, labelLen)
	}
	if opts.MaxSize <= 0 {
		opts.MaxSize = defaultMaxSize
	}
	out, err := fsx.CreateTemp(dst, 0o444)
	if err != nil {
		return Info{}, classify(err, dst)
	}
	in := tarcheck.New(&ctxReader{ctx, r}, opts.Limits)
	in.Apply(opts.Edit)
	info, err := write(ctx, in, out, opts)
	if err != nil {
		return Info{}, classify(errors.Join(err, out.Discard()), dst)
	}
	if err := out.Commit(); err != nil {
		return Info{}, classify(err, dst)
	}
	return info, nil
}

// write fills out and reads it once more for its digest.
func write(ctx context.Context, in *tarcheck.Reader, out *fsx.Temp, opts Options) (Info, error) {
	if err := convert(ctx, in, out.File, opts); err != nil {
		return Info{}, err
	}
	size, err := finish(out.File, opts.Label)
	if err != nil {
		return Info{}, err
	}
	h := sha256.New()
	buf := make([]byte, 1<<20)
	if _, err := io.CopyBuffer(h, &ctxReader{ctx, io.NewSectionReader(out.File, 0, size)}, buf); err != nil {
		return Info{}, err
	}
	has := func(name string) bool { ok, _ := in.Has(tarcheck.Clean(name)); return ok }
	return Info{Digest: fmt.Sprintf("sha256:%x", h.Sum(nil)), Size: size, Stats: in.Stats(), Has: has}, nil
}

// convert feeds the checked entries to the writer, which wants a tar stream of
// its own.
func convert(ctx context.Context, in *tarcheck.Reader, out *os.File, opts Options) error {
	pr, pw := io.Pipe()
	fed := make(chan error, 1)
	ahead := &writeAhead{f: out}
	go func() {
		err := feed(in, pw, func(written int64) {
			ahead.push(written)
			if opts.Progress != nil {
				opts.Progress(written)
			}
		})
		pw.CloseWithError(err)
		fed <- err
	}()
	err := tar2ext4.ConvertTarToExt4(pr, out, tar2ext4.MaximumDiskSize(opts.MaxSize))
	pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	switch ferr := <-fed; {
	case ctx.Err() != nil:
		return fmt.Errorf("write image: %w", context.Cause(ctx))
	case err == nil:
		return ferr
	case ferr != nil && !errors.Is(ferr, io.ErrClosedPipe):
		return ferr // the stream's own fault, not the writer's
	case strings.Contains(err.Error(), "exceeded maximum size"):
		return errs.New(errs.Invalid, "image_limits", "image is too large: more than %d bytes", opts.MaxSize)
	}
	return fmt.Errorf("write image: %w", err)
}

// feed writes the checked entries as a tar stream.
func feed(in *tarcheck.Reader, w io.Writer, progress func(int64)) error {
	bw := bufio.NewWriterSize(w, 256<<10)
	tw := tar.NewWriter(bw)
	buf := make([]byte, 256<<10)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.Name == "" {
			h.Name = "./"
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write image: %s: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, in, buf); err != nil {
				return err
			}
		}
		progress(in.Stats().Bytes)
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

// writeAhead has the kernel write to disk while content still comes, so that
// the sync at the end is short.
type writeAhead struct {
	f    *os.File
	last int64
}

const writeAheadStep = 32 << 20

func (w *writeAhead) push(written int64) {
	if written-w.last < writeAheadStep {
		return
	}
	w.last = written
	// a hint: where it is not known, the sync at the end does it all
	_ = unix.SyncFileRange(int(w.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}

// ctxReader ends with ctx.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

func classify(err error, dst string) error {
	if fsx.IsFull(err) {
		return errs.New(errs.Exhausted, "disk_full", "no space left for image %s", dst).
			WithHint("free space on that file system: df -h %s", filepath.Dir(dst)).Because(err)
	}
	return err
}
