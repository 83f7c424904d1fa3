// Package inroot reads and writes files of a root filesystem that somebody
// else made, as the agent must when it gives a guest its identity: every path
// is resolved by the kernel inside the root (an absolute link starts there
// again, ".." stops there) and never on another filesystem mounted below it,
// so that an image whose /etc is a link to /proc costs a warning and nothing
// else. Files are replaced whole, by rename: a link at the end of a path is
// replaced too, never written through.
//
// It is not a sandbox: a process of the guest's root may change the tree
// meanwhile; that hurts only the guest.
package inroot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds how many dangling links MkdirAll goes through.
const maxLinks = 8

// Root is a directory that stands for "/".
type Root struct{ dir *os.File }

// Open takes the directory at path as a root. Close it after use.
func Open(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), path)}, nil
}

// Close lets the root go.
func (r *Root) Close() error { return r.dir.Close() }

// open resolves name in the root. Links are followed as the kernel follows
// them, except out of the root, into /proc's magic ones or onto another mount.
func (r *Root) open(name string, flags int, mode uint32) (*os.File, error) {
	return r.resolve(name, flags, mode, unix.RESOLVE_NO_XDEV)
}

func (r *Root) resolve(name string, flags int, mode uint32, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		rel = "."
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(int(r.dir.Fd()), rel, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case err == unix.EINTR, err == unix.EAGAIN && try < 16: // a rename raced with the walk
			continue
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
}

// Dir opens a directory of the root, also one on a filesystem mounted in it.
// The file serves as a mount point by MountPath and for the *at calls.
func (r *Root) Dir(name string) (*os.File, error) {
	return r.resolve(name, unix.O_PATH|unix.O_DIRECTORY, 0, 0)
}

// MountPath names what f is open on in a way that mount(2) resolves to that
// very inode, whatever its path has become. It needs /proc.
func MountPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// MkdirAll makes a directory and its parents with mode and opens it; what
// exists stays as it is, and links within the root are followed, dangling
// ones by making what they point at.
func (r *Root) MkdirAll(name string, mode uint32) (*os.File, error) {
	return r.mkdirAll(path.Clean("/"+name), mode, maxLinks)
}

func (r *Root) mkdirAll(name string, mode uint32, links int) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	f, err := r.open(name, flags, 0)
	if err == nil || !errors.Is(err, unix.ENOENT) || name == "/" {
		return f, err
	}
	parentName, base := path.Split(name)
	parent, err := r.mkdirAll(path.Clean(parentName), mode, links)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), base, mode)
	if err == nil {
		return r.open(name, flags, 0)
	}
	if !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	target, err := readlinkat(parent, base)
	if err != nil || links == 0 {
		return nil, &fs.PathError{Op: "mkdir", Path: name, Err: unix.ELOOP}
	}
	if !path.IsAbs(target) {
		target = path.Join(parentName, target)
	}
	made, err := r.mkdirAll(path.Clean("/"+target), mode, links-1)
	if err != nil {
		return nil, err
	}
	made.Close()
	return r.open(name, flags, 0)
}

// RealDir opens a directory at the top of the root, which it makes where it is
// missing and puts in the place of a link or file of that name; replaced says
// whether it did. What is mounted on it is what is opened.
func (r *Root) RealDir(name string, mode uint32) (dir *os.File, replaced bool, err error) {
	base := strings.Trim(name, "/")
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW
	if strings.Contains(base, "/") || base == "" || base == ".." {
		return nil, false, &fs.PathError{Op: "mkdir", Path: name, Err: unix.EINVAL}
	}
	if dir, err = r.resolve(base, flags, 0, 0); err == nil {
		return dir, false, nil
	}
	if !errors.Is(err, unix.ENOENT) {
		replaced = true
		if err := unix.Unlinkat(int(r.dir.Fd()), base, 0); err != nil {
			return nil, false, &fs.PathError{Op: "remove", Path: name, Err: err}
		}
	}
	if err := unix.Mkdirat(int(r.dir.Fd()), base, mode); err != nil {
		return nil, false, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	dir, err = r.resolve(base, flags, 0, 0)
	return dir, replaced, err
}

func readlinkat(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// ReadFile reads a regular file of at most max bytes; a longer one is an error.
func (r *Root) ReadFile(name string, max int64) ([]byte, error) {
	f, err := r.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("read %s: longer than %d bytes", name, max)
	}
	return data, err
}

// WriteFile replaces a file of root's with data and mode, whole or not at all,
// making the directories above it (0755). What the name was before, a link
// included, is gone; a directory is an error.
func (r *Root) WriteFile(name string, data []byte, mode uint32) error {
	parent, base, err := r.parent(name)
	if err != nil {
		return err
	}
	defer parent.Close()
	temp := "." + base + ".banger"
	fail := func(op string, err error) error {
		_ = unix.Unlinkat(int(parent.Fd()), temp, 0)
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(parent.Fd()), temp, flags, mode)
	if errors.Is(err, unix.EEXIST) { // left over by an agent that died here
		if err = unix.Unlinkat(int(parent.Fd()), temp, 0); err == nil {
			fd, err = unix.Openat(int(parent.Fd()), temp, flags, mode)
		}
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	if err == nil {
		err = unix.Fchmod(fd, mode) // whatever the umask is
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fail("write", err)
	}
	if err := unix.Renameat(int(parent.Fd()), temp, int(parent.Fd()), base); err != nil {
		return fail("rename", err)
	}
	return nil
}

// Symlink makes name a link to target, in place of what was there.
func (r *Root) Symlink(target, name string) error {
	parent, base, err := r.parent(name)
	if err != nil {
		return err
	}
	defer parent.Close()
	if old, err := readlinkat(parent, base); err == nil && old == target {
		return nil
	}
	temp := "." + base + ".banger"
	_ = unix.Unlinkat(int(parent.Fd()), temp, 0)
	if err := unix.Symlinkat(target, int(parent.Fd()), temp); err != nil {
		return &fs.PathError{Op: "symlink", Path: name, Err: err}
	}
	if err := unix.Renameat(int(parent.Fd()), temp, int(parent.Fd()), base); err != nil {
		_ = unix.Unlinkat(int(parent.Fd()), temp, 0)
		return &fs.PathError{Op: "symlink", Path: name, Err: err}
	}
	return nil
}

// Remove unlinks a file or link; one that is not there is no error.
func (r *Root) Remove(name string) error {
	dirName, base := path.Split(path.Clean("/" + name))
	parent, err := r.open(dirName, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Unlinkat(int(parent.Fd()), base, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// ReadDir lists the names in a directory, unsorted.
func (r *Root) ReadDir(name string) ([]string, error) {
	f, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Stat says what name is, links followed. An error means that it cannot be
// reached within the root.
func (r *Root) Stat(name string) (fs.FileInfo, error) {
	f, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Chmod sets the mode of a file or directory.
func (r *Root) Chmod(name string, mode uint32) error {
	f, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Chmod(MountPath(f), mode); err != nil {
		return &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	return nil
}

// Regular says whether name itself, not what it may link to, is a file with
// that mode.
func (r *Root) Regular(name string, mode uint32) bool {
	dir, base := path.Split(path.Clean("/" + name))
	parent, err := r.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer parent.Close()
	var st unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode == unix.S_IFREG|mode
}

// parent opens the directory of name, made when missing, and gives the last
// part of name.
func (r *Root) parent(name string) (*os.File, string, error) {
	dirName, base := path.Split(path.Clean("/" + name))
	if base == "" {
		return nil, "", &fs.PathError{Op: "open", Path: name, Err: unix.EISDIR}
	}
	dir, err := r.MkdirAll(dirName, 0o755)
	return dir, base, err
}
