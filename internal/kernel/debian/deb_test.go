package debian_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/banger-dev/banger/internal/kernel/debian"
)

func tarOf(t testing.TB, files map[string]string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, s := range files {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(s)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func squeeze(t testing.TB, kind string, plain []byte) []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	default:
		return plain
	}
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ar(members ...string) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for i := 0; i < len(members); i += 2 {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", members[i], 0, 0, 0, "100644", len(members[i+1]), members[i+1])
		if len(members[i+1])%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

func TestDataOfAPackage(t *testing.T) {
	for _, kind := range []string{"", ".xz", ".zst"} {
		deb := ar("debian-binary", "2.0\n", "control.tar", "odd", "data.tar"+kind, string(squeeze(t, kind, tarOf(t, map[string]string{"./a": "content"}))))
		r, err := debian.Data(bytes.NewReader(deb))
		if err != nil {
			t.Fatalf("%q: %v", kind, err)
		}
		h, err := r.Next()
		if err != nil || h.Name != "./a" {
			t.Fatalf("%q: %v, %v", kind, h, err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != "content" {
			t.Errorf("%q: %q, %v", kind, b, err)
		}
	}
}

func TestBrokenPackagesAreRefused(t *testing.T) {
	for name, deb := range map[string][]byte{
		"empty": nil, "no ar": []byte("hello, world, hello"), "wrong first": ar("x", "2.0\n"),
		"version 3": ar("debian-binary", "3.0\n"), "no data": ar("debian-binary", "2.0\n"),
		"unknown":  ar("debian-binary", "2.0\n", "data.tar.br", "x"),
		"bad size": bytes.Replace(ar("debian-binary", "2.0\n"), []byte("4         "), []byte("-4        "), 1),
		"bad xz":   ar("debian-binary", "2.0\n", "data.tar.xz", "nonsense"),
	} {
		if _, err := debian.Data(bytes.NewReader(deb)); !errors.Is(err, debian.ErrDeb) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzData(f *testing.F) {
	f.Add(ar("debian-binary", "2.0\n", "data.tar", string(tarOf(f, map[string]string{"a": "b"}))))
	f.Add(ar("debian-binary", "2.0\n", "data.tar.xz", string(squeeze(f, ".xz", tarOf(f, map[string]string{"a": "b"})))))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := debian.Data(bytes.NewReader(b))
		for range 100 {
			if err != nil {
				return
			}
			_, err = r.Next()
		}
	})
}
