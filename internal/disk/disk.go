// Package disk makes and measures the raw ext4 disks that VMs write to: the
// system disk and the work disk. It never mounts anything and starts no VM;
// read-only images are internal/image's.
//
// A blank disk is formatted once for each size and label, kept in the cache,
// and copied by holes and data from then on, which takes milliseconds.
package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
)

// The sizes a disk may have, in bytes.
const (
	MinSize = 64 << 20
	MaxSize = 16 << 40
	// blockSize is ext4's; sizes are rounded up to it.
	blockSize = 4096
)

// blankFormat changes when the options below do, so that a cache made by an
// older version is not used.
const blankFormat = "1"

// features are spelled out, so that the disk does not depend on the host's
// mke2fs.conf or version, and so that Debian 12's e2fsck knows them all.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// epoch is the time that a blank disk says it was made at.
const epoch = "1700000000"

// Maker makes disks. Its zero value formats each disk anew.
type Maker struct {
	// Cache is a directory for blank disks, or "". It is made when missing,
	// and may be emptied at any time.
	Cache string
	// MkfsBin is the mke2fs to use, "" for the one on PATH or in /usr/sbin.
	MkfsBin string
}

// Make writes a blank ext4 disk of size bytes to path, which must not exist:
// mode 0600, sparse, growable while mounted. The label has at most 16 bytes;
// the file system's UUID follows from it, so the disks of one VM need
// different labels. On failure path does not exist. Codes: disk_size,
// disk_exists, disk_full, mke2fs_missing, disk_format.
func (m *Maker) Make(ctx context.Context, path string, size int64, label string) error {
	size, err := checkSize(size)
	if err != nil {
		return err
	}
	if len(label) > 16 || strings.ContainsAny(label, "\x00/") {
		return errs.New(errs.Invalid, "disk_label", "disk label %q is not usable: at most 16 bytes, no slash", label)
	}
	if m.Cache == "" {
		return m.format(ctx, path, size, label)
	}
	blank, err := m.blank(ctx, size, label)
	if err != nil {
		return err
	}
	return classify(fsx.CopySparse(ctx, blank, path), path)
}

// blank gives the path of a formatted disk in the cache, making it if needed.
func (m *Maker) blank(ctx context.Context, size int64, label string) (path string, err error) {
	if err := os.MkdirAll(m.Cache, 0o700); err != nil {
		return "", classify(err, m.Cache)
	}
	key := sha256.Sum256(fmt.Append(nil, blankFormat, size, label))
	p := filepath.Join(m.Cache, fmt.Sprintf("blank-%x.ext4", key[:8]))
	if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Size() == size {
		return p, nil
	}
	lock, err := fsx.Lock(ctx, filepath.Join(m.Cache, "blank.lock"))
	if err != nil {
		return "", classify(err, m.Cache)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Size() == size {
		return p, nil // another made it meanwhile
	}
	tmp := p + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", classify(err, tmp)
	}
	if err := m.format(ctx, tmp, size, label); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, p); err != nil {
		return "", classify(errors.Join(err, os.Remove(tmp)), p)
	}
	return p, nil
}

// format makes path with mke2fs.
func (m *Maker) format(ctx context.Context, path string, size int64, label string) (err error) {
	bin, err := m.mkfs()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return classify(err, path)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := errors.Join(f.Chmod(0o600), f.Truncate(size)); err != nil {
		return classify(err, path)
	}
	uuid := uuidFor(label)
	cmd := exec.CommandContext(ctx, bin, "-q", "-F", "-t", "ext4", "-b", fmt.Sprint(blockSize), "-I", "256", "-m", "0",
		"-O", features, "-L", label, "-U", uuid,
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0,hash_seed="+uuid, "--", path)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MKE2FS_CONFIG=/dev/null", "E2FSPROGS_FAKE_TIME=" + epoch, "SOURCE_DATE_EPOCH=" + epoch}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("format disk %s: %w", path, context.Cause(ctx))
		}
		text := strings.TrimSpace(out.String())
		if strings.Contains(text, "No space left") {
			return full(path, syscall.ENOSPC)
		}
		return errs.Wrap(err, errs.Internal, "disk_format", "format disk %s: %s", path, firstLine(text))
	}
	return nil
}

// mkfs finds mke2fs, which is not on an ordinary user's PATH on Debian.
func (m *Maker) mkfs() (string, error) {
	if m.MkfsBin != "" {
		return m.MkfsBin, nil
	}
	for _, name := range []string{"mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", errs.New(errs.Unsupported, "mke2fs_missing", "cannot format a disk: mke2fs is not installed").
		WithHint("sudo apt-get install e2fsprogs")
}

// Clone makes dst, which must not exist, a copy of the disk src, keeping holes
// and sharing blocks where the file system can.
func Clone(ctx context.Context, src, dst string) error {
	return classify(fsx.CopySparse(ctx, src, dst), dst)
}

// Grow makes the disk file size bytes long; the guest then grows the file
// system in it. A disk never shrinks: code disk_shrink.
func Grow(path string, size int64) error {
	size, err := checkSize(size)
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return classify(err, path)
	}
	if size < st.Size() {
		return errs.New(errs.Invalid, "disk_shrink", "cannot shrink disk %s from %d to %d bytes: a disk only grows", path, st.Size(), size)
	}
	return classify(os.Truncate(path, size), path)
}

// Clone is the function Clone, for callers who hold a Maker by an interface.
func (m *Maker) Clone(ctx context.Context, src, dst string) error { return Clone(ctx, src, dst) }

// Grow is the function Grow, likewise.
func (m *Maker) Grow(path string, size int64) error { return Grow(path, size) }

// Usage is how many bytes the disk takes on the host.
func Usage(path string) (int64, error) {
	n, err := fsx.Allocated(path)
	return n, classify(err, path)
}

// checkSize refuses what no disk can have and rounds up to whole blocks.
func checkSize(size int64) (int64, error) {
	if size < MinSize || size > MaxSize {
		return 0, errs.New(errs.Invalid, "disk_size", "disk size of %d bytes is out of range: from 64M to 16T", size).
			WithHint("give a size such as 10G")
	}
	return (size + blockSize - 1) / blockSize * blockSize, nil
}

// uuidFor derives a version 8 UUID from a label.
func uuidFor(label string) string {
	h := sha256.Sum256([]byte("banger disk " + label))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func classify(err error, path string) error {
	switch {
	case err == nil:
		return nil
	case fsx.IsFull(err):
		return full(path, err)
	case errors.Is(err, os.ErrExist):
		return errs.Wrap(err, errs.Conflict, "disk_exists", "make disk")
	case errors.Is(err, os.ErrNotExist):
		return errs.Wrap(err, errs.NotFound, "disk_missing", "use disk")
	case errors.Is(err, os.ErrPermission):
		return errs.Wrap(err, errs.Denied, "disk_denied", "use disk")
	case errors.Is(err, syscall.EFBIG):
		return errs.Wrap(err, errs.Invalid, "disk_size", "the file system of %s cannot hold so large a file", path)
	}
	return err
}

func full(path string, cause error) error {
	return errs.New(errs.Exhausted, "disk_full", "no space left for %s", path).
		WithHint("free space on the file system of %s (df -h %s), or: banger vm prune", filepath.Dir(path), filepath.Dir(path)).Because(cause)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
