// Package kmod reads Linux kernel modules and writes the index files beside
// them that modprobe and udev look things up in (depmod's work), so that a
// kernel package can be made usable without root and without kmod installed.
//
// It loads nothing. Module files are foreign bytes: sizes are bounded and a
// broken file is an error, never a panic.
package kmod

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// MaxModule bounds one module, unpacked, in bytes.
const MaxModule = 64 << 20

// ErrFormat says that a file is not a module this package understands.
var ErrFormat = errors.New("not a usable kernel module")

// Info is what a module says about itself.
type Info struct {
	Name    string   // with underscores, as the kernel lists it
	Depends []string // modules it needs loaded first, by name
	Aliases []string // patterns that ask for it
	// Softdeps are optional dependencies as written ("pre: a b post: c").
	Softdeps []string
	// Symbols are the names it exports.
	Symbols []string
}

// Name gives a module's name from its file's: base name, without ".ko" and
// compression suffix, dashes as underscores. It is "" for other files.
func Name(file string) string {
	base := path.Base(file)
	for _, s := range []string{".xz", ".zst", ".gz"} {
		base = strings.TrimSuffix(base, s)
	}
	name, ok := strings.CutSuffix(base, ".ko")
	if !ok || name == "" {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}

// Unpack reads a module file, decompressing by its name's suffix.
func Unpack(file string, r io.Reader) ([]byte, error) {
	var err error
	switch path.Ext(file) {
	case ".xz":
		r, err = xz.ReaderConfig{DictCap: 8 << 20}.NewReader(r)
	case ".zst":
		var d *zstd.Decoder
		d, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(32<<20))
		if err == nil {
			defer d.Close()
			r = d
		}
	case ".gz":
		r, err = gzip.NewReader(r)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, path.Base(file), err)
	}
	b, err := io.ReadAll(io.LimitReader(r, MaxModule+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, path.Base(file), err)
	}
	if len(b) > MaxModule {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrFormat, path.Base(file), MaxModule)
	}
	return b, nil
}

// Parse reads an unpacked module. Name is left empty.
func Parse(module []byte) (Info, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	sec := f.Section(".modinfo")
	if sec == nil || sec.Type == elf.SHT_NOBITS || sec.Size > uint64(len(module)) {
		return Info{}, fmt.Errorf("%w: no .modinfo section", ErrFormat)
	}
	data, err := sec.Data()
	if err != nil {
		return Info{}, fmt.Errorf("%w: .modinfo: %w", ErrFormat, err)
	}
	var in Info
	for field := range strings.SplitSeq(string(data), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		if value == "" || !clean(value) {
			continue
		}
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					in.Depends = append(in.Depends, strings.ReplaceAll(d, "-", "_"))
				}
			}
		case "alias":
			in.Aliases = append(in.Aliases, value)
		case "softdep":
			in.Softdeps = append(in.Softdeps, value)
		}
	}
	in.Symbols = exported(f, uint64(len(module)))
	return in, nil
}

// sigMagic ends a signed module; before it stands a 12-byte record whose last
// four bytes are the signature's length, and before that the signature.
const sigMagic = "~Module signature appended~\n"

// StripSignature gives an unpacked module without its signature; one that has
// none comes back as it is.
func StripSignature(module []byte) []byte {
	body, ok := bytes.CutSuffix(module, []byte(sigMagic))
	if !ok || len(body) < 12 {
		return module
	}
	rec := body[len(body)-12:]
	n := uint64(binary.BigEndian.Uint32(rec[8:]))
	if n > uint64(len(body)-12) {
		return module
	}
	return body[:uint64(len(body)-12)-n]
}

// clean refuses what would break the line-based index files.
func clean(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// exported gives the symbols with an entry in the export table. A module with
// none is ordinary.
func exported(f *elf.File, size uint64) []string {
	for _, s := range f.Sections {
		if (s.Type == elf.SHT_SYMTAB || s.Type == elf.SHT_STRTAB) && s.Size > size {
			return nil
		}
	}
	syms, err := f.Symbols()
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range syms {
		if n, ok := strings.CutPrefix(s.Name, "__ksymtab_"); ok && n != "" && clean(n) && !strings.Contains(n, " ") {
			names = append(names, n)
		}
	}
	return names
}
