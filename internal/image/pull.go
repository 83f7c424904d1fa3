package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/op"
)

// pull makes an image under the lock of its name, in a directory of its own
// that is renamed when everything in it is whole and on disk.
func (s *Store) pull(ctx context.Context, o origin, force bool, r op.Reporter) (img Image, err error) {
	lock, err := s.lock(ctx, o.Name, r)
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if !force {
		// another process may have made it while we waited
		if img, err := s.Get(o.Name); err == nil || errs.CodeOf(err) != "image_absent" {
			return img, err
		}
	}
	if err := s.sweep(o.Name); err != nil {
		return Image{}, err
	}
	if free, err := fsx.FreeSpace(s.dir); err == nil && free < o.Need {
		return Image{}, errs.New(errs.Exhausted, "disk_full", "cannot make image %q: %.1fG free in %s, %.1fG needed", o.Name, gib(free), s.dir, gib(o.Need)).
			WithHint("free space there: df -h %s", s.dir)
	}
	tmp, err := os.MkdirTemp(s.dir, workPrefix+o.Name+".")
	if err != nil {
		return Image{}, classify(err, "write to the image store")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	out, work := filepath.Join(tmp, "out"), filepath.Join(tmp, "work")
	if err := errors.Join(os.Mkdir(out, 0o700), os.Mkdir(work, 0o755)); err != nil {
		return Image{}, classify(err, "write to the image store")
	}
	m, err := o.source.Make(ctx, o.Name, filepath.Join(out, fileRootfs), work, r)
	if err != nil {
		return Image{}, err
	}
	if err := s.commit(tmp, out, o.Name, m); err != nil {
		return Image{}, err
	}
	return s.Get(o.Name)
}

// lock takes the lock of a name and says so when another process has it.
func (s *Store) lock(ctx context.Context, name string, r op.Reporter) (*fsx.FileLock, error) {
	p := filepath.Join(s.dir, name+lockSuffix)
	l, err := fsx.TryLock(p)
	if errors.Is(err, fsx.ErrLocked) {
		r.Note("image", fmt.Sprintf("another banger is making %s: waiting for it", name))
		l, err = fsx.Lock(ctx, p)
	}
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return l, classify(err, "lock the image store")
}

// commit checks what was made, moves it to its digest and points the name to it.
func (s *Store) commit(tmp, out, name string, m Manifest) error {
	hex := strings.TrimPrefix(m.Digest, "sha256:")
	st, err := os.Stat(filepath.Join(out, fileRootfs))
	if err != nil {
		return classify(err, "store the image")
	}
	if !digestForm.MatchString(hex) || m.Schema != 1 || m.Size != st.Size() {
		return errs.New(errs.Internal, "image_manifest", "the source of image %q described something else than it made", name)
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("describe image %s: %w", name, err)
	}
	old, oldErr := s.resolve(name)
	to := filepath.Join(s.dir, dirDigests, hex)
	if _, err := s.load(hex); err != nil {
		if err := errors.Join(fsx.WriteFile(filepath.Join(out, fileManifest), append(b, '\n'), 0o600), writeStamp(out)); err != nil {
			return classify(err, "store the image")
		}
		// a damaged one of the same content makes way, and goes with tmp
		if err := os.Rename(to, filepath.Join(tmp, "damaged")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return classify(err, "replace the damaged image")
		}
		if err := errors.Join(os.Rename(out, to), fsx.SyncDir(filepath.Dir(to))); err != nil {
			return classify(err, "store the image")
		}
	}
	if err := fsx.WriteFile(filepath.Join(s.dir, dirNames, name), []byte(m.Digest+"\n"), 0o600); err != nil {
		return classify(err, "name the image")
	}
	if oldErr == nil && old != hex {
		return s.dropDamaged(old)
	}
	return nil
}

// dropDamaged removes an image that no name points to any more, if it is of no
// use to anyone.
func (s *Store) dropDamaged(hex string) error {
	names, err := s.names()
	if err != nil || len(names[hex]) > 0 {
		return err
	}
	if _, err := s.load(hex); err == nil {
		return nil
	}
	return classify(os.RemoveAll(filepath.Join(s.dir, dirDigests, hex)), "remove the damaged image")
}

// sweep removes what a killed process left of this name; its lock is held.
func (s *Store) sweep(name string) error {
	left, err := filepath.Glob(filepath.Join(s.dir, workPrefix+name+".*"))
	for _, p := range left {
		err = errors.Join(err, os.RemoveAll(p))
	}
	return classify(err, "clean the image store")
}

// Verify reads the whole image and compares its digest: image_corrupt where it
// differs. It takes about a second for each gigabyte.
func (s *Store) Verify(ctx context.Context, img Image) error {
	if err := verify(img.Rootfs, img.Manifest, ctx.Err); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return s.corrupt(img.Manifest.Name, err)
	}
	return nil
}

// verify reads the whole file, until stop gives an error.
func verify(rootfs string, m Manifest, stop func() error) error {
	f, err := os.Open(rootfs)
	if err != nil {
		return err
	}
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for err == nil {
		var n int
		n, err = f.Read(buf)
		h.Write(buf[:n])
		if serr := stop(); serr != nil {
			err = serr
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got := fmt.Sprintf("sha256:%x", h.Sum(nil)); got != m.Digest {
		return fmt.Errorf("%s has digest %.19s… in place of %.19s…", fileRootfs, got, m.Digest)
	}
	return nil
}

// checkRootfs compares size and stamp. Whoever writes to the file changes the
// stamp, and then the digest decides: the image is used by every VM, so a
// quiet change would reach them all.
func checkRootfs(rootfs, stamp string, m Manifest) error {
	st, err := os.Lstat(rootfs)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() != m.Size {
		return fmt.Errorf("%s has %d bytes in place of %d", fileRootfs, st.Size(), m.Size)
	}
	now, err := stampOf(rootfs)
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(stamp); err == nil && string(b) == now {
		return nil
	}
	// bounded by the file's size, and rare
	if err := verify(rootfs, m, func() error { return nil }); err != nil {
		return err
	}
	return fsx.WriteFile(stamp, []byte(now), 0o600)
}

// stampOf names the state of a file as the kernel keeps it.
func stampOf(p string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	return fmt.Sprintf("%d %d %d.%09d\n", st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec), nil
}

func writeStamp(dir string) error {
	s, err := stampOf(filepath.Join(dir, fileRootfs))
	if err != nil {
		return err
	}
	return fsx.WriteFile(filepath.Join(dir, fileStamp), []byte(s), 0o600)
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

// closest gives the known name that a mistyped one most likely stands for.
func closest(name string, known []string) string {
	name = name[:min(len(name), 64)]
	best, least := "", max(len(name)/3, 2)+1
	for _, k := range known {
		if d := distance(name, k); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		for _, k := range known {
			if len(name) >= 3 && (strings.HasPrefix(k, name) || strings.Contains(k, name)) {
				return k
			}
		}
	}
	return best
}

// distance counts the single letters to change, add or leave out.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
