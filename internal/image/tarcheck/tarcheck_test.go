package tarcheck_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/image/tarcheck"
)

// entry makes a header the short way: kind, name and link target.
func entry(kind byte, name string, target ...string) tar.Header {
	h := tar.Header{Typeflag: kind, Name: name, Mode: 0o644, Format: tar.FormatPAX}
	if len(target) > 0 {
		h.Linkname = target[0]
	}
	return h
}

func dev(name string, major, minor int64) tar.Header {
	h := entry(tar.TypeChar, name)
	h.Devmajor, h.Devminor = major, minor
	return h
}

// stream makes a tar of headers; each regular file holds "data".
func stream(t testing.TB, hs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte("data")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read gives "kind name" of every entry.
func read(r *tarcheck.Reader) ([]string, error) {
	var got []string
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return got, err
		}
		got = append(got, strings.TrimSpace(string(h.Typeflag)+" "+h.Name+" "+h.Linkname+string(b)))
	}
}

func TestCleanTreePasses(t *testing.T) {
	r := tarcheck.New(bytes.NewReader(stream(t,
		entry(tar.TypeDir, "./"), entry(tar.TypeDir, "./usr/"), entry(tar.TypeReg, "./usr/bin/env"),
		entry(tar.TypeLink, "usr/bin/env2", "./usr/bin/env"), entry(tar.TypeSymlink, "/bin", "usr/bin"),
		entry(tar.TypeSymlink, "out", "../../../etc/shadow"), entry(tar.TypeDir, "usr/bin"),
		dev("dev/null", 1, 3), entry(tar.TypeFifo, "run/p"),
	)), tarcheck.Limits{})
	got, err := read(r)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"5", "5 usr", "5 usr/bin", "0 usr/bin/env data", "1 usr/bin/env2 usr/bin/env", "2 bin usr/bin",
		"2 out ../../../etc/shadow", "5 usr/bin", "5 dev", "3 dev/null", "5 run", "6 run/p"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s := r.Stats(); s.Files != 1 || s.Bytes != 4 || s.Entries != 12 {
		t.Errorf("stats %+v", s)
	}
	if ok, dir := r.Has("usr/bin"); !ok || !dir {
		t.Error("usr/bin is not known as a directory")
	}
	if ok, _ := r.Has("nope"); ok {
		t.Error("knows what never came")
	}
}

func TestHostileEntriesAreRefused(t *testing.T) {
	deep := strings.Repeat("d/", 300) + "x"
	for name, hs := range map[string][]tar.Header{
		"dotdot":              {entry(tar.TypeReg, "../../tmp/x")},
		"dotdot inside":       {entry(tar.TypeReg, "a/../../x")},
		"double slash":        {entry(tar.TypeReg, "a//x")},
		"dot inside":          {entry(tar.TypeReg, "a/./x")},
		"beneath a link":      {entry(tar.TypeSymlink, "esc", "/tmp"), entry(tar.TypeReg, "esc/x")},
		"beneath a file":      {entry(tar.TypeReg, "f"), entry(tar.TypeReg, "f/x")},
		"twice":               {entry(tar.TypeReg, "a"), entry(tar.TypeReg, "a")},
		"twice, other names":  {entry(tar.TypeReg, "a"), entry(tar.TypeReg, "/./a")},
		"directory then link": {entry(tar.TypeDir, "etc"), entry(tar.TypeSymlink, "etc", "/host")},
		"implied then link":   {entry(tar.TypeReg, "etc/x"), entry(tar.TypeSymlink, "etc", "/host")},
		"link then directory": {entry(tar.TypeSymlink, "etc", "/host"), entry(tar.TypeDir, "etc")},
		"hard link outside":   {entry(tar.TypeLink, "x", "../../../../etc/shadow")},
		"hard link forward":   {entry(tar.TypeLink, "x", "y"), entry(tar.TypeReg, "y")},
		"hard link to dir":    {entry(tar.TypeDir, "d"), entry(tar.TypeLink, "x", "d")},
		"hard link to itself": {entry(tar.TypeLink, "x", "x")},
		"overlay whiteout":    {dev("etc/passwd", 0, 0)},
		"absurd device":       {dev("d", 1<<20, 0)},
		"root is a link":      {entry(tar.TypeSymlink, "./", "/host")},
		"lost+found a file":   {entry(tar.TypeReg, "lost+found")},
		"long component":      {entry(tar.TypeReg, strings.Repeat("x", 256))},
		"long path":           {entry(tar.TypeReg, strings.Repeat("abcdefgh/", 500)+"x")},
		"deep path":           {entry(tar.TypeReg, deep)},
		"long target":         {entry(tar.TypeSymlink, "l", strings.Repeat("x", 5000))},
		"contiguous file":     {entry(tar.TypeCont, "c")},
	} {
		_, err := read(tarcheck.New(bytes.NewReader(stream(t, hs...)), tarcheck.Limits{}))
		if errs.CodeOf(err) != "image_entry" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLimits(t *testing.T) {
	s := stream(t, entry(tar.TypeReg, "a"), entry(tar.TypeReg, "b"), entry(tar.TypeReg, "c"))
	for name, l := range map[string]tarcheck.Limits{"entries": {Entries: 2}, "bytes": {Bytes: 11}, "file": {File: 3}} {
		if _, err := read(tarcheck.New(bytes.NewReader(s), l)); errs.CodeOf(err) != "image_limits" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := read(tarcheck.New(bytes.NewReader(s), tarcheck.Limits{Entries: 3, Bytes: 12, File: 4})); err != nil {
		t.Error(err)
	}
}

func TestBrokenStreams(t *testing.T) {
	s := stream(t, entry(tar.TypeReg, "a"), entry(tar.TypeReg, "b"))
	for _, n := range []int{100, 512, 514, 1300} {
		if _, err := read(tarcheck.New(bytes.NewReader(s[:n]), tarcheck.Limits{})); errs.CodeOf(err) != "image_stream" {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func TestAttributes(t *testing.T) {
	h := entry(tar.TypeReg, "ping")
	h.Mode, h.Uname = 0o104755, "mallory"
	h.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02",
		"SCHILY.xattr.user.note":                "n",
		"SCHILY.xattr.trusted.overlay.redirect": "/etc",
		"SCHILY.xattr.user.overlay.opaque":      "y",
		"SCHILY.xattr.security.selinux":         "x",
	}
	r := tarcheck.New(bytes.NewReader(stream(t, h)), tarcheck.Limits{})
	got, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if x := tarcheck.Xattrs(got); len(x) != 2 || x["user.note"] != "n" || x["security.capability"] == "" {
		t.Errorf("attributes %q", x)
	}
	if r.Stats().DroppedXattrs != 3 || got.Mode != 0o4755 || got.Uname != "" {
		t.Errorf("%+v, mode %o, name %q", r.Stats(), got.Mode, got.Uname)
	}
	h.PAXRecords = map[string]string{"SCHILY.xattr.user.big": strings.Repeat("x", 5000)}
	if _, err := tarcheck.New(bytes.NewReader(stream(t, h)), tarcheck.Limits{}).Next(); errs.CodeOf(err) != "image_entry" {
		t.Errorf("large attribute: %v", err)
	}
}

func TestReadErrorKeepsItsKind(t *testing.T) {
	want := errs.New(errs.Unavailable, "mirror_gone", "x")
	_, err := tarcheck.New(io.MultiReader(bytes.NewReader(make([]byte, 100)), failing{want}), tarcheck.Limits{}).Next()
	if !errors.Is(err, want) || errs.CodeOf(err) != "mirror_gone" {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzReader(f *testing.F) {
	f.Add(stream(f, entry(tar.TypeReg, "a/b"), entry(tar.TypeLink, "c", "a/b"), entry(tar.TypeSymlink, "d", "a")))
	f.Add(stream(f, entry(tar.TypeReg, "../x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := tarcheck.New(bytes.NewReader(b), tarcheck.Limits{Entries: 1000, Bytes: 1 << 20})
		seen := map[string]byte{}
		for {
			h, err := r.Next()
			if err != nil {
				return
			}
			if h.Name != tarcheck.Clean(h.Name) {
				t.Fatalf("name %q is not clean", h.Name)
			}
			if old, ok := seen[h.Name]; ok && (old != tar.TypeDir || h.Typeflag != tar.TypeDir) {
				t.Fatalf("%q came twice", h.Name)
			}
			if i := strings.LastIndexByte(h.Name, '/'); i > 0 && seen[h.Name[:i]] != tar.TypeDir {
				t.Fatalf("%q came before its directory", h.Name)
			}
			seen[h.Name] = h.Typeflag
			if _, err := io.Copy(io.Discard, r); err != nil {
				return
			}
		}
	})
}
