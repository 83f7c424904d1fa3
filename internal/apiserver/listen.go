package apiserver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/paths"
)

// PrivateDir makes dir (0700) where it is not there, and refuses one that is a
// link, another user's, or open to others: whoever controls it would control
// what lies in it. Parents are made with the same mode.
func PrivateDir(dir string, uid int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.Wrap(err, errs.Denied, "dir_unusable", "cannot make %s", dir)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errs.Wrap(err, errs.Denied, "dir_unusable", "cannot open %s", dir)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errs.Wrap(err, errs.Denied, "dir_unusable", "cannot look at %s", dir)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errs.New(errs.Denied, "dir_hostile", "%s is a symbolic link, which another user may point elsewhere", dir).
			WithHint("remove it: rm %s", dir)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errs.New(errs.Denied, "dir_hostile", "%s is not a directory", dir).WithHint("move it away")
	case int(st.Uid) != uid:
		return errs.New(errs.Denied, "dir_hostile", "%s belongs to user %d, not to %d", dir, st.Uid, uid).
			WithHint("remove it as its owner, or set %s to another place", paths.EnvHome)
	case st.Mode&0o077 != 0:
		return errs.New(errs.Denied, "dir_open", "%s is open to other users (mode %04o)", dir, st.Mode&0o777).
			WithHint("chmod 700 %s", dir)
	}
	return nil
}

// Listen listens on a Unix socket in a directory that PrivateDir accepts. The
// socket is 0600 from birth; a stale one is replaced (the caller holds the
// daemon's lock, so nobody else serves it). Connections of other users are
// dropped unanswered.
func Listen(path string, uid int, log *slog.Logger) (net.Listener, error) {
	if len(path) > paths.MaxSocket {
		return nil, errs.New(errs.Invalid, "socket_path_long", "the socket's path %s has %d bytes, more than %d", path, len(path), paths.MaxSocket).
			WithHint("set %s to a shorter directory", paths.EnvRuntime)
	}
	if err := PrivateDir(filepath.Dir(path), uid); err != nil {
		return nil, err
	}
	st, err := os.Lstat(path)
	switch {
	case err == nil && st.Mode()&fs.ModeSocket == 0:
		return nil, errs.New(errs.Conflict, "socket_taken", "%s is there and no socket", path).WithHint("move it away")
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	l, err := listen0600(path)
	if err != nil {
		return nil, errs.Wrap(err, errs.Unavailable, "socket_unusable", "cannot listen on %s", path)
	}
	return &ownListener{UnixListener: l, uid: uint32(uid), log: log}, nil
}

// listen0600 binds with the mode set on the socket before it has a name: a
// change of the process's umask would be seen by every other goroutine.
func listen0600(path string) (*net.UnixListener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, fmt.Errorf("chmod: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is no unix listener", l), l.Close())
	}
	ul.SetUnlinkOnClose(true)
	return ul, nil
}

// ownListener accepts connections of one user and of root.
type ownListener struct {
	*net.UnixListener
	uid uint32
	log *slog.Logger
}

// Accept gives the next connection of the right user.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peer(c)
		if err == nil && (uid == l.uid || uid == 0) {
			return c, nil
		}
		l.log.Warn("connection refused", "uid", uid, "err", err)
		_ = c.SetDeadline(time.Now())
		_ = c.Close()
	}
}

func peer(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return cred.Uid, nil
}
