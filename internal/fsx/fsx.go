// Package fsx is the few file operations that must be done right in one place:
// whole-or-nothing writes, locks between processes, copies that keep holes,
// and writes that cannot leave a directory. It knows nothing of banger and is
// not a virtual file system.
package fsx

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tempMark stands in the name of every temporary file this package makes, so
// that a sweep can tell them from everything else.
const tempMark = ".tmp-"

// WriteFile replaces path with data, wholly or not at all, and returns when
// both the file and its name are on disk. The file's mode is mode exactly,
// whatever the umask. The directory must exist.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	f, err := CreateTemp(path, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), f.Discard())
	}
	return f.Commit()
}

// Temp is a file under a temporary name beside its final one. Exactly one of
// Commit and Discard ends it; Discard after Commit does nothing, so it may be
// deferred.
type Temp struct {
	*os.File
	final string
	ended bool
}

// CreateTemp opens a new file that will become path. Its mode is mode exactly.
func CreateTemp(path string, mode fs.FileMode) (*Temp, error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+tempMark+token())
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(name))
	}
	return &Temp{File: f, final: path}, nil
}

// Commit puts the content and then the name on disk. A failed fsync is final:
// the file goes, since what the disk holds is unknown then.
func (t *Temp) Commit() error {
	if t.ended {
		return nil
	}
	if err := t.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", t.final, err), t.Discard())
	}
	if err := os.Rename(t.Name(), t.final); err != nil {
		return errors.Join(err, t.Discard())
	}
	t.ended = true
	if err := t.Close(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(t.final))
}

// Discard removes the temporary file unless it was committed.
func (t *Temp) Discard() error {
	if t.ended {
		return nil
	}
	t.ended = true
	return errors.Join(t.Close(), os.Remove(t.Name()))
}

// SyncDir puts the names in dir on disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	// some file systems (FUSE, some network ones) cannot sync a directory
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// WriteBeneath writes the content of r to name below dir, making directories
// on the way (mode 0755). No symbolic link below dir can lead out of it: a
// name or link that would is an error. The file is replaced as a whole, but
// is not synced.
func WriteBeneath(dir, name string, r io.Reader, mode fs.FileMode) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if parent := filepath.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	tmp := name + tempMark + token()
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	return nil
}

// FreeSpace is the number of bytes an ordinary user can still write on the
// file system that holds path, which must exist.
func FreeSpace(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Allocated is the number of bytes the file takes on disk, holes not counted.
func Allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}

// IsFull says that err means a full disk or a used-up quota.
func IsFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func token() string {
	var b [8]byte
	// rand.Read never fails (it ends the program rather than return weak bytes)
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
