package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// seededAttr marks a directory whose first content is complete, where nobody
// sees it.
const seededAttr = "trusted.banger.seeded"

// seedDir makes dir with what the image has in source, once: a boot that died
// half-way does it again.
func seedDir(source, dir string) error {
	if seeded(dir) {
		return nil
	}
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, info.Mode().Perm()); err != nil {
		return err
	}
	if err := copyTree(source, dir, false); err != nil {
		return err
	}
	return markSeeded(dir)
}

// seedHome fills the work disk, open as home, with the image's /root: all of
// it root's, and the directory closed to others as sshd wants it. What the
// host has put there already stays.
func seedHome(source string, home *os.File) error {
	dir := home.Name()
	if seeded(dir) {
		return nil
	}
	_ = os.Remove(filepath.Join(dir, "lost+found")) // e2fsck makes it anew when it needs it
	if err := copyTree(source, dir, true); err != nil {
		return err
	}
	if err := os.Chown(dir, 0, 0); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	// The mark must not reach the disk before what it stands for.
	if err := unix.Syncfs(int(home.Fd())); err != nil {
		return err
	}
	return markSeeded(dir)
}

func seeded(dir string) bool {
	n, err := unix.Getxattr(dir, seededAttr, nil)
	return err == nil && n > 0
}

func markSeeded(dir string) error {
	if err := unix.Setxattr(dir, seededAttr, []byte("1"), 0); err != nil {
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	return nil
}

// copyTree copies files, directories and links from one directory to another
// and leaves out everything else and what is there already. It follows no
// link. With own everything becomes root's.
func copyTree(from, to string, own bool) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if err := copyEntry(src, dst, own); err != nil {
			return fmt.Errorf("copy %s: %w", e.Name(), err)
		}
	}
	return nil
}

func copyEntry(src, dst string, own bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return err
	}
	mode := st.Mode & 0o7777
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err := unix.Mkdir(dst, 0o700)
		if err != nil && err != unix.EEXIST {
			return err
		}
		if info, serr := os.Lstat(dst); serr != nil || !info.IsDir() {
			return serr
		}
		if cerr := copyTree(src, dst, own); cerr != nil || err == unix.EEXIST {
			return cerr
		}
	case unix.S_IFREG:
		if err := copyFile(src, dst); errors.Is(err, os.ErrExist) {
			return nil
		} else if err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(src)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, dst); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	default:
		return nil
	}
	if !own {
		if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := unix.Chmod(dst, mode); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, times, unix.AT_SYMLINK_NOFOLLOW)
}

func copyFile(src, dst string) error {
	in, err := os.OpenFile(src, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Close())
	if err != nil {
		return errors.Join(err, os.Remove(dst))
	}
	return nil
}
