package ext4_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/image/ext4"
	"github.com/banger-dev/banger/internal/image/tarcheck"
)

type file struct {
	h    tar.Header
	data []byte
}

// sample is a tree with every kind of entry, long names and large files.
func sample() []file {
	rnd := rand.New(rand.NewPCG(1, 2))
	blob := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	at := time.Unix(1700000000, 0)
	fs := []file{
		{h: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}},
		{h: tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o750, Uid: 7, Gid: 70000}},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "etc/empty", Mode: 0o600}},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "etc/hello", Mode: 0o4755, Uid: 1000, Gid: 1000}, data: []byte("hello\n")},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "etc/with space \"quoted\" é", Mode: 0o644}, data: []byte("odd name")},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644}, data: blob(3<<20 + 123)},
		{h: tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "etc/hello"}},
		{h: tar.Header{Typeflag: tar.TypeSymlink, Name: "short", Linkname: "etc/hello"}},
		{h: tar.Header{Typeflag: tar.TypeSymlink, Name: "long", Linkname: strings.Repeat("../deep/", 20) + "x"}},
		{h: tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666}},
		{h: tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600}},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/ping", Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}, data: []byte("ping")},
	}
	for i := range 3000 { // more than one directory block, more than one inode block
		fs = append(fs, file{h: tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("many/a-rather-long-name-%05d", i), Mode: 0o644}, data: fmt.Append(nil, i)})
	}
	for i := range fs {
		fs[i].h.ModTime, fs[i].h.Format, fs[i].h.Size = at, tar.FormatPAX, int64(len(fs[i].data))
	}
	return fs
}

func pack(t testing.TB, fs []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range fs {
		if err := w.WriteHeader(&f.h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tool runs one of e2fsprogs, which Debian keeps off users' PATH.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		p = "/usr/sbin/" + name
	}
	cmd := exec.Command(p, args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out.String(), stderr.String())
	}
	return out.String()
}

func TestFromTarHoldsWhatTheStreamHeld(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "img")
	fs := sample()
	var told int64
	info, err := ext4.FromTar(t.Context(), bytes.NewReader(pack(t, fs)), dst, ext4.Options{Label: "banger-test", Progress: func(n int64) { told = n }})
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "e2fsck", "-fn", dst)
	raw, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(raw)); info.Digest != want || info.Size != int64(len(raw)) {
		t.Errorf("%s, %d bytes; the file has %s, %d", info.Digest, info.Size, want, len(raw))
	}
	if told != info.Bytes || info.Bytes < 3<<20 {
		t.Errorf("progress ended at %d of %d", told, info.Bytes)
	}
	if st, _ := os.Stat(dst); st.Mode() != 0o444 {
		t.Errorf("mode %v", st.Mode())
	}
	if !info.Has("/usr/bin/ping") || info.Has("/sbin/init") {
		t.Error("Has")
	}
	head := tool(t, "dumpe2fs", "-h", dst)
	if !strings.Contains(head, "banger-test") || !strings.Contains(head, "read-only") || strings.Contains(head, "UUID:          <none>") {
		t.Errorf("superblock:\n%s", head)
	}
	for _, f := range fs {
		if !strings.HasPrefix(f.h.Name, "many/") || strings.HasSuffix(f.h.Name, "99") {
			compare(t, dst, f)
		}
	}
	if n := strings.Count(tool(t, "debugfs", "-R", "ls -p /many", dst), "a-rather-long-name"); n != 3000 {
		t.Errorf("%d of 3000 files in the directory", n)
	}
}

var statLine = regexp.MustCompile(`(?s)Type: (\S+ ?\S*)\s+Mode:\s+(\d+).*?User:\s+(\d+)\s+Group:\s+(\d+)`)

// compare looks at one entry with debugfs, which shares no code with us.
func compare(t *testing.T, img string, f file) {
	t.Helper()
	quoted := `"/` + strings.ReplaceAll(strings.Trim(f.h.Name, "./"), `"`, `""`) + `"`
	m := statLine.FindStringSubmatch(tool(t, "debugfs", "-R", "stat "+quoted, img))
	if m == nil {
		t.Errorf("%s is missing", f.h.Name)
		return
	}
	types := map[byte]string{tar.TypeReg: "regular", tar.TypeDir: "directory", tar.TypeSymlink: "symlink", tar.TypeChar: "character special", tar.TypeFifo: "FIFO", tar.TypeLink: "regular"}
	if got := strings.TrimSpace(m[1]); !strings.HasPrefix(types[f.h.Typeflag], strings.Fields(got)[0]) {
		t.Errorf("%s is a %s", f.h.Name, got)
	}
	switch f.h.Typeflag {
	case tar.TypeLink, tar.TypeSymlink:
		if f.h.Typeflag == tar.TypeSymlink && len(f.h.Linkname) > 60 {
			if got := tool(t, "debugfs", "-R", "cat "+quoted, img); got != f.h.Linkname {
				t.Errorf("%s points to %q", f.h.Name, got)
			}
		}
		return
	}
	if want := fmt.Sprintf("%05o %d %d", f.h.Mode, f.h.Uid, f.h.Gid); want != fmt.Sprintf("%05s %s %s", m[2], m[3], m[4]) {
		t.Errorf("%s: mode and owner %v, want %s", f.h.Name, m[2:], want)
	}
	if f.h.Typeflag == tar.TypeReg && tool(t, "debugfs", "-R", "cat "+quoted, img) != string(f.data) {
		t.Errorf("%s: content differs", f.h.Name)
	}
}

func TestSameEntriesSameBytes(t *testing.T) {
	dir := t.TempDir()
	b := pack(t, sample())
	var digests []string
	for _, n := range []string{"a", "b"} {
		info, err := ext4.FromTar(t.Context(), bytes.NewReader(b), filepath.Join(dir, n), ext4.Options{})
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, info.Digest)
	}
	if digests[0] != digests[1] {
		t.Error(digests)
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	good := pack(t, sample())
	cancelled, cancel := context.WithCancel(t.Context())
	for name, c := range map[string]struct {
		ctx  context.Context
		r    io.Reader
		opts ext4.Options
		code string
	}{
		"cut":       {t.Context(), bytes.NewReader(good[:len(good)/2]), ext4.Options{}, "image_stream"},
		"hostile":   {t.Context(), bytes.NewReader(pack(t, []file{{h: tar.Header{Typeflag: tar.TypeReg, Name: "../x"}}})), ext4.Options{}, "image_entry"},
		"too many":  {t.Context(), bytes.NewReader(good), ext4.Options{Limits: tarcheck.Limits{Entries: 5}}, "image_limits"},
		"too large": {t.Context(), bytes.NewReader(good), ext4.Options{MaxSize: 1 << 20}, "image_limits"},
		"cancelled": {cancelled, io.MultiReader(bytes.NewReader(good[:4096]), readFunc(func() { cancel() }), bytes.NewReader(good[4096:])), ext4.Options{}, "cancelled"},
		"label":     {t.Context(), bytes.NewReader(good), ext4.Options{Label: strings.Repeat("x", 17)}, "image_label"},
		"disk full": {t.Context(), io.MultiReader(bytes.NewReader(good[:4096]), failing{unix.ENOSPC}), ext4.Options{}, "disk_full"},
	} {
		dir := t.TempDir()
		_, err := ext4.FromTar(c.ctx, c.r, filepath.Join(dir, "img"), c.opts)
		if errs.CodeOf(err) != c.code {
			t.Errorf("%s: %v (code %s, want %s)", name, err, errs.CodeOf(err), c.code)
		}
		if es, _ := os.ReadDir(dir); len(es) != 0 {
			t.Errorf("%s left %v", name, es)
		}
	}
}

type readFunc func()

func (f readFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestEmptyStreamIsAnEmptyFileSystem(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "img")
	if _, err := ext4.FromTar(t.Context(), bytes.NewReader(pack(t, nil)), dst, ext4.Options{}); err != nil {
		t.Fatal(err)
	}
	tool(t, "e2fsck", "-fn", dst)
}

// FuzzFromTar holds that whatever bytes come, the result is an error or a
// sound file system, and never a file elsewhere.
func FuzzFromTar(f *testing.F) {
	small := sample()[:12]
	small[5].h.Size, small[5].data = 5000, small[5].data[:5000] // the large one makes a slow seed
	f.Add(pack(f, small))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		dst := filepath.Join(dir, "img")
		_, err := ext4.FromTar(t.Context(), bytes.NewReader(b), dst, ext4.Options{MaxSize: 64 << 20, Limits: tarcheck.Limits{Entries: 1000, Bytes: 8 << 20}})
		if err != nil {
			if _, serr := os.Lstat(dst); !errors.Is(serr, os.ErrNotExist) {
				t.Fatal("a failure left the image")
			}
			return
		}
		tool(t, "e2fsck", "-fn", dst)
	})
}
