package agent

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

// tarIn unpacks what follows on the stream.
func tarIn(st *mux.Stream, body []byte) error {
	var req wire.TarInRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	u, err := newUnpacker(&req)
	if err != nil {
		return err
	}
	defer u.close()
	if err := u.unpack(tar.NewReader(st)); err != nil {
		return err
	}
	// Padding may follow the end; the host is to find it read.
	if _, err := io.Copy(io.Discard, st); err != nil {
		return err
	}
	return answer(st, &u.done, true)
}

// unpacker writes entries beneath one directory. Names and links in the
// archive, and links that lie there already, cannot lead it out: the kernel
// resolves every parent directory beneath the root's descriptor.
type unpacker struct {
	root    int
	resolve uint64
	req     *wire.TarInRequest
	done    wire.TarReply
	buf     []byte

	parentName string // of the directory that parent is, "" for none
	parent     int
	dirs       []madeDir
}

// madeDir is a directory whose mode and time are set at the end: neither must
// stand in the way of what goes into it, nor be changed by that.
type madeDir struct {
	name string
	mode uint32
	time time.Time
}

func newUnpacker(req *wire.TarInRequest) (*unpacker, error) {
	if !path.IsAbs(req.Dir) {
		return nil, errs.New(errs.Invalid, "bad_path", "%q is not an absolute path", req.Dir)
	}
	if req.MakeDir {
		if err := os.MkdirAll(req.Dir, 0o755); err != nil {
			return nil, fileError(err, "make directory "+req.Dir)
		}
	}
	root, err := unix.Open(req.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fileError(err, "open directory "+req.Dir)
	}
	u := &unpacker{root: root, req: req, parent: -1, buf: make([]byte, 64<<10), resolve: beneath(req.Dir)}
	return u, nil
}

// beneath chooses how names resolve: in the whole guest absolute links mean
// what they say, anywhere else they lead out.
func beneath(dir string) uint64 {
	if path.Clean(dir) == "/" {
		return unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	}
	return unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
}

// fileError gives a failure with a file the kind that the host can act on.
func fileError(err error, what string) error {
	kind, code := errs.Internal, "guest_file"
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		kind, code = errs.NotFound, "no_such_file"
	case errors.Is(err, fs.ErrExist), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		kind, code = errs.Conflict, "file_exists"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		kind, code = errs.Denied, "file_denied"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind, code = errs.Exhausted, "guest_disk_full"
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		kind, code = errs.Invalid, "bad_path"
	}
	return errs.Wrap(err, kind, code, "%s", what)
}

func (u *unpacker) close() {
	if u.parent >= 0 && u.parent != u.root {
		unix.Close(u.parent)
	}
	unix.Close(u.root)
}

func (u *unpacker) unpack(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return u.finishDirs()
		}
		if err != nil {
			return errs.Wrap(err, errs.Invalid, "bad_tar", "read the files sent")
		}
		if err := u.entry(h, r); err != nil {
			return err
		}
		u.done.Entries++
	}
}

// inside makes a name relative and plain; ".." is refused and not resolved.
func inside(name string) (string, error) {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errs.New(errs.Invalid, "bad_path", "%q leads out of the directory", name)
		}
	}
	if strings.Contains(name, "\x00") {
		return "", errs.New(errs.Invalid, "bad_path", "%q has a zero byte", name)
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return nil // the directory itself: it stays as it is
	}
	dir, base, err := u.locate(name)
	if err != nil {
		return fileError(err, name)
	}
	if h.Typeflag == tar.TypeDir {
		return u.directory(h, name, dir, base)
	}
	if err := u.clear(dir, base); err != nil {
		return fileError(err, name)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(h, name, dir, base, r)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeLink:
		return u.link(h, name, dir, base)
	case tar.TypeFifo:
		err = unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		err = unix.Mknodat(dir, base, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknodat(dir, base, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		return errs.New(errs.Unsupported, "bad_tar", "%s: entry of type %q", name, h.Typeflag)
	}
	if err == nil {
		err = u.dress(h, dir, base)
	}
	if err != nil {
		return fileError(err, name)
	}
	return nil
}

// locate gives the directory that an entry goes into, made where it is not
// there. The descriptor is valid until the next call.
func (u *unpacker) locate(name string) (dir int, base string, err error) {
	parent, base := path.Split(name)
	parent = strings.TrimSuffix(parent, "/")
	if parent == "" {
		return u.root, base, nil
	}
	if u.parent >= 0 && u.parentName == parent {
		return u.parent, base, nil
	}
	fd, err := u.open(parent, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		fd, err = u.makeParents(parent)
	}
	if err != nil {
		return -1, "", err
	}
	if u.parent >= 0 {
		unix.Close(u.parent)
	}
	u.parent, u.parentName = fd, parent
	return fd, base, nil
}

func (u *unpacker) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: u.resolve}
	for {
		fd, err := unix.Openat2(u.root, name, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

func (u *unpacker) makeParents(name string) (int, error) {
	made := ""
	at := u.root
	for part := range strings.SplitSeq(name, "/") {
		if err := unix.Mkdirat(at, part, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return -1, err
		}
		made = path.Join(made, part)
		fd, err := u.open(made, unix.O_PATH|unix.O_DIRECTORY)
		if at != u.root {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at = fd
	}
	return at, nil
}

// clear makes room for an entry that is no directory.
func (u *unpacker) clear(dir int, base string) error {
	if !u.req.Overwrite {
		return nil // whoever makes it fails where it exists
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (u *unpacker) directory(h *tar.Header, name string, dir int, base string) error {
	err := unix.Mkdirat(dir, base, 0o700)
	if errors.Is(err, fs.ErrExist) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fileError(err, name)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
		case unix.S_IFLNK:
			return nil // kept: what goes into it is resolved beneath the root
		default:
			return errs.New(errs.Conflict, "file_exists", "%s is there and no directory", name)
		}
	} else if err != nil {
		return fileError(err, name)
	}
	if u.req.Owner {
		if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fileError(err, name)
		}
	}
	u.dirs = append(u.dirs, madeDir{name, modeBits(h), h.ModTime})
	return nil
}

func modeBits(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

func (u *unpacker) file(h *tar.Header, name string, dir int, base string, r io.Reader) error {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fileError(err, name)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, u.buf)
	u.done.Bytes += uint64(n)
	if err == nil {
		err = u.dress(h, dir, base)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fileError(err, name)
	}
	return nil
}

func (u *unpacker) link(h *tar.Header, name string, dir int, base string) error {
	target, err := inside(h.Linkname)
	if err != nil {
		return err
	}
	parent, tbase := path.Split(target)
	fd := u.root
	if parent != "" {
		if fd, err = u.open(strings.TrimSuffix(parent, "/"), unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return fileError(err, name+" to "+target)
		}
		defer unix.Close(fd)
	}
	if err := unix.Linkat(fd, tbase, dir, base, 0); err != nil {
		return fileError(err, name+" to "+target)
	}
	return nil
}

// dress sets owner, mode and time of an entry that was just made: the owner
// first, since changing it drops mode bits.
func (u *unpacker) dress(h *tar.Header, dir int, base string) error {
	if u.req.Owner {
		if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(dir, base, modeBits(h), 0); err != nil {
			return err
		}
	}
	return touch(dir, base, h.ModTime)
}

func touch(dir int, base string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// finishDirs sets modes and times of directories, the deepest first.
func (u *unpacker) finishDirs() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		dir, base, err := u.locate(d.name)
		if err == nil {
			err = unix.Fchmodat(dir, base, d.mode, 0)
		}
		if err == nil {
			err = touch(dir, base, d.time)
		}
		if err != nil {
			return fileError(err, d.name)
		}
	}
	return nil
}
