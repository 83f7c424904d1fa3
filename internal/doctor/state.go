package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/paths"
)

// Dir is a directory that banger keeps for itself.
type Dir struct{ What, Path string }

// Dirs checks that banger's directories are its user's alone.
func Dirs(h Host, dirs []Dir) Provider {
	return func(context.Context) []Check {
		var out []Check
		for _, d := range dirs {
			err := CheckDir(h.Root, h.UID, d.Path)
			out = append(out, FromError(d.What+" directory", "who can write there can become you, and who can read there sees your VMs' keys", d.Path, err))
		}
		return out
	}
}

// CheckDir says why a directory must not be trusted with state: it is a link
// or no directory, another's, open to others, or lies where another can
// replace it. One that is not there yet is fine. root is the file system from
// / on. Codes: dir_is_link, dir_not_directory, dir_foreign, dir_open,
// dir_parent_open, each of kind denied.
func CheckDir(root fs.FS, uid int, dir string) error {
	st, err := fs.Lstat(root, rel(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Denied, "dir_unreadable", "cannot look at %s", dir).Because(err)
	}
	if err == nil {
		if err := checkOwn(st, uid, dir); err != nil {
			return err
		}
	}
	for p := path.Dir(path.Clean(dir)); ; p = path.Dir(p) {
		// A link on the way is followed: it must lie, and lead, where
		// nobody else can change it.
		if st, err := fs.Stat(root, rel(p)); err == nil {
			if err := checkParent(st, uid, p, dir); err != nil {
				return err
			}
		}
		if p == "/" || p == "." {
			return nil
		}
	}
}

func checkOwn(st fs.FileInfo, uid int, dir string) error {
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		return errs.New(errs.Denied, "dir_is_link", "%s is a symbolic link", dir).WithHint("move it away: mv '%s' '%s.old'", dir, dir)
	case !st.IsDir():
		return errs.New(errs.Denied, "dir_not_directory", "%s is no directory", dir).WithHint("move it away: mv '%s' '%s.old'", dir, dir)
	case owner(st, uid) != uid:
		return errs.New(errs.Denied, "dir_foreign", "%s belongs to user %d, not to you (%d)", dir, owner(st, uid), uid).
			WithHint("if its content is yours: sudo chown -R %d '%s'", uid, dir)
	case st.Mode().Perm()&0o077 != 0:
		return errs.New(errs.Denied, "dir_open", "%s is open to others (mode %04o)", dir, st.Mode().Perm()).WithHint("chmod 700 '%s'", dir)
	}
	return nil
}

// checkParent: a directory above may be the user's or root's, and writable by
// others only where the sticky bit keeps them from renaming what is not theirs.
func checkParent(st fs.FileInfo, uid int, p, dir string) error {
	if o := owner(st, uid); o != uid && o != 0 {
		return errs.New(errs.Denied, "dir_parent_open", "%s belongs to user %d, who can replace %s", p, o, dir).
			WithHint("choose another place, see: banger config path")
	}
	if st.Mode().Perm()&0o022 != 0 && st.Mode()&fs.ModeSticky == 0 {
		return errs.New(errs.Denied, "dir_parent_open", "others can write to %s (mode %04o) and so replace %s", p, st.Mode().Perm(), dir).
			WithHint("chmod go-w '%s'", p)
	}
	return nil
}

// owner gives a file's user id; a file system that has none is the asker's.
func owner(st fs.FileInfo, uid int) int {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return uid
}

// Sockets checks that the sockets' paths are not too long.
func Sockets(longest string) Provider {
	return func(context.Context) []Check {
		c := Check{Name: "sockets", Status: OK, Message: path.Dir(longest), Why: "Linux takes no socket path beyond 107 bytes"}
		if len(longest) > paths.MaxSocket {
			c.Status, c.Message = Fail, fmt.Sprintf("%s has %d bytes", longest, len(longest))
			c.Fix = []string{"export " + paths.EnvRuntime + "=/tmp/b   # a shorter place, in your profile"}
		}
		return []Check{c}
	}
}
