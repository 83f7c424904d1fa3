package agent

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

// tarOut sends files as a tar stream in messages, then what it was.
func tarOut(st *mux.Stream, body []byte) error {
	var req wire.TarOutRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	if !path.IsAbs(req.Dir) {
		return errs.New(errs.Invalid, "bad_path", "%q is not an absolute path", req.Dir)
	}
	root, err := unix.Open(req.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileError(err, "open directory "+req.Dir)
	}
	defer unix.Close(root)
	if len(req.Paths) == 0 {
		req.Paths = []string{"."}
	}
	out := bufio.NewWriterSize(&items{st: st}, 64<<10)
	p := &packer{out: tar.NewWriter(out), seen: make(map[inode]string), buf: make([]byte, 64<<10)}
	for _, name := range req.Paths {
		if err := p.from(root, beneath(req.Dir), name); err != nil {
			return err
		}
	}
	if err := p.out.Close(); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return answer(st, &p.done, true)
}

// items writes raw bytes as messages.
type items struct {
	st  *mux.Stream
	buf []byte
}

func (w *items) Write(p []byte) (int, error) {
	var err error
	if w.buf, err = wire.AppendRaw(w.buf[:0], wire.KindItem, p); err != nil {
		return 0, err
	}
	if _, err := w.st.Write(w.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

type inode struct{ dev, ino uint64 }

// packer writes files to a tar stream. It follows no link and never leaves
// the directories it was given.
type packer struct {
	out  *tar.Writer
	seen map[inode]string // files with several names, by the first of them
	done wire.TarReply
	buf  []byte
}

// from packs one of the paths asked for.
func (p *packer) from(root int, resolve uint64, name string) error {
	name, err := inside(name)
	if err != nil {
		return err
	}
	if name == "" {
		return p.add(root, ".", ".")
	}
	dir, base := path.Split(name)
	fd := root
	if dir != "" {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve}
		if fd, err = unix.Openat2(root, strings.TrimSuffix(dir, "/"), &how); err != nil {
			return fileError(err, name)
		}
		defer unix.Close(fd)
	}
	return p.add(fd, base, name)
}

// add packs what base is in dir, under name.
func (p *packer) add(dir int, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fileError(err, name)
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p.directory(h, dir, base)
	case unix.S_IFREG:
		return p.file(h, dir, base, &st)
	case unix.S_IFLNK:
		link, err := readLink(dir, base)
		if err != nil {
			return fileError(err, name)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, link
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	default:
		return nil // a socket is no file
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return p.head(h)
}

func (p *packer) head(h *tar.Header) error {
	p.done.Entries++
	if err := p.out.WriteHeader(h); err != nil {
		if errors.Is(err, tar.ErrHeader) {
			return errs.Wrap(err, errs.Unsupported, "bad_tar", "%s", h.Name)
		}
		return err
	}
	return nil
}

func (p *packer) directory(h *tar.Header, dir int, base string) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileError(err, h.Name)
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fileError(err, h.Name)
	}
	slices.Sort(names)
	prefix := h.Name + "/"
	if h.Name == "." {
		prefix = "./"
	}
	h.Typeflag, h.Name = tar.TypeDir, prefix
	if err := p.head(h); err != nil {
		return err
	}
	for _, n := range names {
		err := p.add(fd, n, prefix+n)
		if errs.Is(err, errs.NotFound) {
			continue // it went while we were on our way
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) file(h *tar.Header, dir int, base string, st *unix.Stat_t) error {
	h.Typeflag = tar.TypeReg
	if st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if first, ok := p.seen[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.head(h)
		}
		p.seen[key] = h.Name
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileError(err, h.Name)
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return fileError(err, h.Name)
	}
	if now.Mode&unix.S_IFMT != unix.S_IFREG {
		return errs.New(errs.Conflict, "file_changed", "%s changed while it was read", h.Name)
	}
	h.Size = now.Size
	if err := p.head(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{p.out}, struct{ io.Reader }{io.LimitReader(f, h.Size)}, p.buf)
	p.done.Bytes += uint64(n)
	if err != nil {
		return fileError(err, h.Name)
	}
	// A file that shrank meanwhile is filled up: its size is on its way.
	_, err = io.CopyBuffer(struct{ io.Writer }{p.out}, struct{ io.Reader }{io.LimitReader(zeros{}, h.Size-n)}, p.buf)
	return err
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func readLink(dir int, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
