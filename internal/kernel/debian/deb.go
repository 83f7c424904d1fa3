package debian

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ErrDeb says that a file is not a Debian package this package understands.
var ErrDeb = errors.New("not a usable Debian package")

// maxMember bounds an ar member's claimed size.
const maxMember = 2 << 30

// Data opens the file tree of a .deb: its data.tar member, unpacked. The
// entries are foreign: the caller checks names and sizes.
func Data(r io.Reader) (*tar.Reader, error) {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "!<arch>\n" {
		return nil, fmt.Errorf("%w: no ar archive", ErrDeb)
	}
	for first := true; ; first = false {
		name, size, err := member(r)
		if err != nil {
			return nil, err
		}
		if first && name != "debian-binary" {
			return nil, fmt.Errorf("%w: begins with %q", ErrDeb, name)
		}
		body := io.LimitReader(r, size)
		if comp, ok := strings.CutPrefix(name, "data.tar"); ok {
			return open(comp, body)
		}
		if first {
			if err := version(body); err != nil {
				return nil, err
			}
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDeb, name, err)
		}
		if size%2 == 1 {
			var pad [1]byte
			if _, err := io.ReadFull(r, pad[:]); err != nil {
				return nil, fmt.Errorf("%w: %s is cut short", ErrDeb, name)
			}
		}
	}
}

// member reads one ar header.
func member(r io.Reader) (string, int64, error) {
	h := make([]byte, 60)
	if _, err := io.ReadFull(r, h); err != nil {
		return "", 0, fmt.Errorf("%w: no data.tar in it", ErrDeb)
	}
	if string(h[58:]) != "`\n" {
		return "", 0, fmt.Errorf("%w: broken ar header", ErrDeb)
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(h[48:58])), 10, 64)
	if err != nil || size < 0 || size > maxMember {
		return "", 0, fmt.Errorf("%w: member of %q bytes", ErrDeb, bytes.TrimSpace(h[48:58]))
	}
	name := strings.TrimSuffix(strings.TrimSpace(string(h[:16])), "/")
	return name, size, nil
}

func version(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, 16))
	if err != nil || !bytes.HasPrefix(b, []byte("2.")) {
		return fmt.Errorf("%w: format version %q", ErrDeb, bytes.TrimSpace(b))
	}
	return nil
}

func open(comp string, r io.Reader) (*tar.Reader, error) {
	var err error
	switch comp {
	case "":
	case ".xz":
		// The decoder reads byte by byte.
		r, err = xz.ReaderConfig{DictCap: 8 << 20}.NewReader(bufio.NewReaderSize(r, 256<<10))
	case ".zst":
		// The decoder runs in the caller's goroutine: nothing to close.
		r, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
	case ".gz":
		r, err = gzip.NewReader(r)
	default:
		return nil, fmt.Errorf("%w: data.tar%s is compressed in a way not known here", ErrDeb, comp)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: data.tar%s: %w", ErrDeb, comp, err)
	}
	return tar.NewReader(r), nil
}
