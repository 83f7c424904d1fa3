package bzimage_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"github.com/banger-dev/banger/internal/kernel/bzimage"
	"github.com/banger-dev/banger/internal/kernel/kerneltest"
)

func pack(t testing.TB, kind string, plain []byte) []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "zstd":
		w, err = zstd.NewWriter(&b)
	case "lz4":
		l := lz4.NewWriter(&b)
		err = l.Apply(lz4.LegacyOption(true))
		w = l
	case "xz":
		w, err = xz.NewWriter(&b)
	case "gzip":
		w = gzip.NewWriter(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if kind == "gzip" {
		return b.Bytes()
	}
	return binary.LittleEndian.AppendUint32(b.Bytes(), uint32(len(plain)))
}

func TestEveryCompressionComesBackWhole(t *testing.T) {
	plain := kerneltest.ELF(18, 300_000)
	for _, kind := range []string{"zstd", "lz4", "xz", "gzip"} {
		img := kerneltest.BZImage(pack(t, kind, plain))
		var out bytes.Buffer
		n, err := bzimage.Extract(bytes.NewReader(img), int64(len(img)), &out)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if n != int64(len(plain)) || !bytes.Equal(out.Bytes(), plain) {
			t.Errorf("%s: %d bytes came out and differ from the %d put in", kind, n, len(plain))
		}
	}
}

func TestLyingImagesAreRefused(t *testing.T) {
	plain := kerneltest.ELF(18, 4096)
	good := kerneltest.BZImage(pack(t, "zstd", plain))
	bad := map[string][]byte{
		"empty":            nil,
		"no header":        make([]byte, 4096),
		"payload too long": mutate(good, 0x24c, 0xffffff),
		"payload offset":   mutate(good, 0x248, 0xfffffff0),
		"cut short":        good[:len(good)-200],
		"not an ELF":       kerneltest.BZImage(pack(t, "zstd", make([]byte, 4096))),
		"unknown magic":    kerneltest.BZImage(append(bytes.Repeat([]byte{7}, 100), 0, 16, 0, 0)),
		"size too small":   kerneltest.BZImage(relabel(pack(t, "zstd", plain), 4000)),
		"size too large":   kerneltest.BZImage(relabel(pack(t, "lz4", plain), 5000)),
		"size absurd":      kerneltest.BZImage(relabel(pack(t, "zstd", plain), 1<<31)),
	}
	for name, img := range bad {
		if _, err := bzimage.Extract(bytes.NewReader(img), int64(len(img)), io.Discard); !errors.Is(err, bzimage.ErrFormat) {
			t.Errorf("%s: got %v, want ErrFormat", name, err)
		}
	}
}

func mutate(b []byte, off int, v uint32) []byte {
	c := bytes.Clone(b)
	binary.LittleEndian.PutUint32(c[off:], v)
	return c
}

func relabel(payload []byte, size uint32) []byte {
	c := bytes.Clone(payload)
	binary.LittleEndian.PutUint32(c[len(c)-4:], size)
	return c
}

func TestPVHNoteIsFound(t *testing.T) {
	for note, want := range map[uint32]bool{18: true, 6: false} {
		got, err := bzimage.HasPVH(bytes.NewReader(kerneltest.ELF(note, 4096)))
		if err != nil || got != want {
			t.Errorf("note %d: %v, %v; want %v", note, got, err, want)
		}
	}
}

func FuzzExtract(f *testing.F) {
	plain := kerneltest.ELF(18, 4096)
	for _, kind := range []string{"zstd", "lz4", "xz", "gzip"} {
		f.Add(kerneltest.BZImage(pack(f, kind, plain)))
	}
	f.Fuzz(func(t *testing.T, img []byte) {
		var out bytes.Buffer
		n, err := bzimage.Extract(bytes.NewReader(img), int64(len(img)), &out)
		if err == nil && (n != int64(out.Len()) || !bytes.HasPrefix(out.Bytes(), []byte("\x7fELF"))) {
			t.Fatalf("accepted %d bytes that are no ELF", n)
		}
		_, _ = bzimage.HasPVH(bytes.NewReader(img))
	})
}
