// Package kerneltest makes small kernels and modules for tests: right in form,
// with nothing in them that could boot.
package kerneltest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/op"
)

// ELF is the smallest x86-64 ELF with one note of Xen's; note 18 is the PVH
// entry point. size is at least 256.
func ELF(note uint32, size int) []byte {
	le := binary.LittleEndian
	b := make([]byte, size)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // executable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64) // program headers
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	p := b[64:]
	le.PutUint32(p, 4) // PT_NOTE
	le.PutUint64(p[8:], 128)
	le.PutUint64(p[32:], 20)
	n := b[128:]
	le.PutUint32(n, 4)
	le.PutUint32(n[4:], 4)
	le.PutUint32(n[8:], note)
	copy(n[12:], "Xen\x00")
	r := rand.New(rand.NewPCG(1, 2))
	for i := 256; i < size; i++ {
		b[i] = byte(r.IntN(8))
	}
	return b
}

// BZImage wraps a compressed kernel, whose last four bytes are its plain size,
// as the boot protocol wants it.
func BZImage(payload []byte) []byte {
	le := binary.LittleEndian
	const sects, off = 2, 100
	b := make([]byte, (sects+1)*512+off)
	b[0x1f1] = sects
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint32(b[0x248:], off)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(append(b, payload...), "trailing signature"...)
}

// Module builds the smallest ELF with a .modinfo section and the named
// symbols exported.
func Module(modinfo string, exports ...string) []byte {
	le := binary.LittleEndian
	const names = "\x00.modinfo\x00.symtab\x00.strtab\x00.shstrtab\x00"
	strtab := "\x00"
	symtab := make([]byte, 24)
	for _, e := range exports {
		sym := make([]byte, 24)
		le.PutUint32(sym, uint32(len(strtab)))
		le.PutUint16(sym[6:], 1)
		symtab = append(symtab, sym...)
		strtab += "__ksymtab_" + e + "\x00"
	}
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	type sec struct {
		name, typ  uint32
		data       string
		link       uint32
		entry, off uint64
	}
	secs := []sec{
		{}, {1, 1, modinfo, 0, 0, 0}, {10, 2, string(symtab), 3, 24, 0},
		{18, 3, strtab, 0, 0, 0}, {26, 3, names, 0, 0, 0},
	}
	for i := range secs {
		secs[i].off = uint64(len(b))
		b = append(b, secs[i].data...)
	}
	le.PutUint64(b[40:], uint64(len(b)))
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], uint16(len(secs)))
	le.PutUint16(b[62:], 4)
	for _, s := range secs {
		h := make([]byte, 64)
		le.PutUint32(h, s.name)
		le.PutUint32(h[4:], s.typ)
		le.PutUint64(h[24:], s.off)
		le.PutUint64(h[32:], uint64(len(s.data)))
		le.PutUint32(h[40:], s.link)
		le.PutUint64(h[56:], s.entry)
		b = append(b, h...)
	}
	return b
}

// Source is a kernel.Source that makes a kernel up. Release may be changed
// between fetches.
type Source struct {
	Release string
	// Before runs first in every fetch, where it is not nil.
	Before func(ctx context.Context, dir string) error
}

// Fetch implements kernel.Source.
func (s *Source) Fetch(ctx context.Context, _ kernel.Recipe, dir string, stage *op.Stage) (kernel.Origin, error) {
	stage.Progress(1, 2, "bytes", "making up")
	if s.Before != nil {
		if err := s.Before(ctx, dir); err != nil {
			return kernel.Origin{}, err
		}
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(ELF(18, 4096)); err != nil {
		return kernel.Origin{}, err
	}
	if err := w.Close(); err != nil {
		return kernel.Origin{}, err
	}
	for name, b := range map[string][]byte{
		"vmlinuz":                      BZImage(z.Bytes()),
		"config":                       []byte("CONFIG_HZ=250\nCONFIG_JUMP_LABEL=y\n# " + s.Release + "\n"),
		"modules/kernel/virtio.ko":     Module("depends=\x00"),
		"modules/kernel/virtio-net.ko": Module("depends=virtio\x00alias=virtio:d1v*\x00"),
		"modules/modules.order":        []byte("kernel/virtio.ko\nkernel/virtio-net.ko\n"),
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return kernel.Origin{}, err
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			return kernel.Origin{}, err
		}
	}
	return kernel.Origin{Release: s.Release, Source: "made up " + s.Release}, nil
}

// Recipes has one kernel, "test-1", that fits Source.
func Recipes() map[string]kernel.Recipe {
	return map[string]kernel.Recipe{"test-1": {Schema: 1, Name: "test-1", BootModules: []string{"virtio_net"}}}
}
