// Package bzimage takes the ELF kernel out of an x86 bzImage: hypervisors
// that boot through PVH (Firecracker always, QEMU's microvm faster than by
// the real-mode path) want the ELF file, distributions ship the bzImage.
//
// It reads foreign bytes: every offset is checked and the output is bounded.
// It does not judge whether the kernel is one to trust.
package bzimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// MaxOutput bounds the ELF kernel, in bytes.
const MaxOutput = 512 << 20

// maxWindow bounds the decompressor's memory; kernels use zstd's largest
// ordinary window, 128 MiB.
const maxWindow = 128 << 20

// ErrFormat says that the input is not a bzImage this package understands.
var ErrFormat = errors.New("not a usable bzImage")

// The boot protocol's header (Documentation/arch/x86/boot.rst).
const (
	offSetupSects = 0x1f1
	offBootFlag   = 0x1fe
	offMagic      = 0x202
	offVersion    = 0x206
	offPayload    = 0x248
	offPayloadLen = 0x24c
	headerSize    = 0x250
	minVersion    = 0x0208 // the first with a payload offset
)

// Payload finds the compressed kernel inside the bzImage.
func Payload(r io.ReaderAt, size int64) (*io.SectionReader, error) {
	h := make([]byte, headerSize)
	if size < headerSize {
		return nil, fmt.Errorf("%w: %d bytes are too few", ErrFormat, size)
	}
	if _, err := r.ReadAt(h, 0); err != nil {
		return nil, fmt.Errorf("reading the setup header: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(h[offBootFlag:]) != 0xaa55 || string(h[offMagic:offMagic+4]) != "HdrS" {
		return nil, fmt.Errorf("%w: no setup header", ErrFormat)
	}
	if v := le.Uint16(h[offVersion:]); v < minVersion {
		return nil, fmt.Errorf("%w: boot protocol %d.%02d is too old", ErrFormat, v>>8, v&0xff)
	}
	sects := int64(h[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	off := (sects+1)*512 + int64(le.Uint32(h[offPayload:]))
	n := int64(le.Uint32(h[offPayloadLen:]))
	if n < 8 || off+n > size {
		return nil, fmt.Errorf("%w: the payload (%d bytes at %d) lies outside the file (%d bytes)", ErrFormat, n, off, size)
	}
	return io.NewSectionReader(r, off, n), nil
}

// Extract writes the ELF kernel inside the bzImage to w and gives its size.
// The result was checked to be as long as the image says and to be an x86-64
// ELF; what was written before an error is rubbish.
func Extract(r io.ReaderAt, size int64, w io.Writer) (int64, error) {
	p, err := Payload(r, size)
	if err != nil {
		return 0, err
	}
	// The build appends the plain size, which gzip has in its own trailer
	// at the same place.
	var tail [4]byte
	if _, err := p.ReadAt(tail[:], p.Size()-4); err != nil {
		return 0, fmt.Errorf("reading the payload's size: %w", err)
	}
	want := int64(binary.LittleEndian.Uint32(tail[:]))
	if want < 64 || want > MaxOutput {
		return 0, fmt.Errorf("%w: the kernel claims to be %d bytes", ErrFormat, want)
	}
	d, err := decompressor(p)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	head := &headWriter{w: w}
	n, err := io.Copy(head, io.LimitReader(d, want+1))
	if err != nil {
		return n, fmt.Errorf("%w: decompressing: %w", ErrFormat, err)
	}
	if n != want {
		return n, fmt.Errorf("%w: %d bytes came out where %d were announced", ErrFormat, n, want)
	}
	if err := checkELF(head.head); err != nil {
		return n, err
	}
	return n, nil
}

// headWriter remembers the first bytes that pass.
type headWriter struct {
	w    io.Writer
	head []byte
}

func (h *headWriter) Write(p []byte) (int, error) {
	if n := 64 - len(h.head); n > 0 {
		h.head = append(h.head, p[:min(n, len(p))]...)
	}
	return h.w.Write(p)
}

func checkELF(h []byte) error {
	if len(h) < 64 || !bytes.HasPrefix(h, []byte(elf.ELFMAG)) || elf.Class(h[elf.EI_CLASS]) != elf.ELFCLASS64 ||
		elf.Machine(binary.LittleEndian.Uint16(h[18:])) != elf.EM_X86_64 {
		return fmt.Errorf("%w: the payload is no x86-64 ELF", ErrFormat)
	}
	return nil
}

// decompressor picks by magic number. All but gzip exclude the appended size.
func decompressor(p *io.SectionReader) (io.ReadCloser, error) {
	var m [6]byte
	if _, err := p.ReadAt(m[:], 0); err != nil {
		return nil, fmt.Errorf("reading the payload: %w", err)
	}
	body := io.NewSectionReader(p, 0, p.Size()-4)
	switch {
	case bytes.HasPrefix(m[:], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return d.IOReadCloser(), nil
	case bytes.HasPrefix(m[:], []byte{0x02, 0x21, 0x4c, 0x18}):
		return io.NopCloser(lz4.NewReader(body)), nil
	case bytes.HasPrefix(m[:], []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		// Kernels compressed with the x86 branch filter end in an
		// error here: the decoder does not have it.
		d, err := xz.ReaderConfig{DictCap: 64 << 20, SingleStream: true}.NewReader(body)
		if err != nil {
			return nil, fmt.Errorf("%w: xz: %w", ErrFormat, err)
		}
		return io.NopCloser(d), nil
	case m[0] == 0x1f && m[1] == 0x8b:
		d, err := gzip.NewReader(p)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrFormat, err)
		}
		d.Multistream(false)
		return d, nil
	}
	return nil, fmt.Errorf("%w: compression with magic % x is not known here (zstd, lz4, xz and gzip are)", ErrFormat, m[:4])
}

// HasPVH says whether an ELF kernel carries the note with its 32-bit PVH
// entry point, without which neither QEMU's microvm nor Firecracker boots it.
func HasPVH(r io.ReaderAt) (bool, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return false, fmt.Errorf("%w: reading notes: %w", ErrFormat, err)
		}
		if noteFound(notes, f.ByteOrder) {
			return true, nil
		}
	}
	return false, nil
}

// notePVH is XEN_ELFNOTE_PHYS32_ENTRY.
const notePVH = 18

func noteFound(b []byte, bo binary.ByteOrder) bool {
	for len(b) >= 12 {
		name, desc, typ := uint64(bo.Uint32(b)), uint64(bo.Uint32(b[4:])), bo.Uint32(b[8:])
		b = b[12:]
		total := (name+3)&^3 + (desc+3)&^3
		if total > uint64(len(b)) {
			return false
		}
		if typ == notePVH && string(bytes.TrimRight(b[:name], "\x00")) == "Xen" {
			return true
		}
		b = b[total:]
	}
	return false
}
