package agent_test

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/guesttest"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// describe lists a tree as lines that compare.
func describe(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		b.WriteString(rel + " " + st.Mode().String() + " " + st.ModTime().UTC().Format(time.RFC3339Nano))
		switch {
		case st.Mode().IsRegular():
			data, _ := os.ReadFile(path)
			b.WriteString(" " + string(data[:min(len(data), 40)]))
		case st.Mode()&fs.ModeSymlink != 0:
			link, _ := os.Readlink(path)
			b.WriteString(" -> " + link)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestATreeGoesInAndOutUnchanged(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "made", "dir")
	script := `umask 022; mkdir -p a/b ro; echo hi >a/b/f; echo x >ro/in; ln -s ../a link; ln -s /abs al; ln a/b/f hard; mkfifo p
		printf '#!/bin/sh\n' >run; chmod 4755 run; touch "odd
name"; touch -d '2001-02-03 04:05:06.789' a/b/f a/b a; head -c 300000 /dev/urandom >big; chmod 555 ro; touch -d 2002-02-02 ro`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = src
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		os.Chmod(filepath.Join(src, "ro"), 0o755)
		os.Chmod(filepath.Join(dst, "ro"), 0o755)
	})
	var archive bytes.Buffer
	sent, err := c.TarOut(t.Context(), wire.TarOutRequest{Dir: src}, &archive)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.TarIn(t.Context(), wire.TarInRequest{Dir: dst, MakeDir: true}, bytes.NewReader(archive.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if sent.Entries != got.Entries || sent.Bytes != got.Bytes {
		t.Errorf("sent %+v, got %+v", sent, got)
	}
	if a, b := describe(t, src), describe(t, dst); a != b {
		t.Errorf("sent\n%s\ngot\n%s", a, b)
	}
	st1, _ := os.Stat(filepath.Join(dst, "hard"))
	st2, _ := os.Stat(filepath.Join(dst, "a/b/f"))
	if !os.SameFile(st1, st2) {
		t.Error("the hard link is a copy")
	}
	if _, err := c.TarIn(t.Context(), wire.TarInRequest{Dir: dst}, bytes.NewReader(archive.Bytes())); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a second time: %v", err)
	}
	if _, err := c.TarIn(t.Context(), wire.TarInRequest{Dir: dst, Overwrite: true}, bytes.NewReader(archive.Bytes())); err != nil {
		t.Errorf("over itself: %v", err)
	}
}

func TestSomePathsGoOut(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "x/y"), 0o755)
	os.WriteFile(filepath.Join(dir, "x/y/z"), []byte("z"), 0o600)
	os.WriteFile(filepath.Join(dir, "other"), nil, 0o600)
	var b bytes.Buffer
	if _, err := c.TarOut(t.Context(), wire.TarOutRequest{Dir: dir, Paths: []string{"x/y"}}, &b); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); got != "x/y/ x/y/z" {
		t.Error(got)
	}
	for _, p := range []string{"../x", "x/../../y"} {
		if _, err := c.TarOut(t.Context(), wire.TarOutRequest{Dir: dir, Paths: []string{p}}, io.Discard); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", p, err)
		}
	}
	if _, err := c.TarOut(t.Context(), wire.TarOutRequest{Dir: dir, Paths: []string{"none"}}, io.Discard); errs.KindOf(err) != errs.NotFound {
		t.Error(err)
	}
}

func TestNoArchiveLeadsOut(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	outer := t.TempDir()
	victim := filepath.Join(outer, "victim")
	os.Mkdir(victim, 0o755)
	os.WriteFile(filepath.Join(victim, "file"), []byte("mine"), 0o644)
	file := func(name string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}
	}
	link := func(kind byte, name, target string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o777}
	}
	for name, entries := range map[string][]*tar.Header{
		"dots":                  {file("../victim/file")},
		"dots within":           {file("a/../../victim/file")},
		"absolute link":         {link(tar.TypeSymlink, "esc", victim), file("esc/file")},
		"relative link":         {link(tar.TypeSymlink, "esc", "../victim"), file("esc/file")},
		"link to a file":        {link(tar.TypeSymlink, "esc", victim+"/file"), file("esc")},
		"chain of links":        {link(tar.TypeSymlink, "a", "."), link(tar.TypeSymlink, "a/b", ".."), file("b/victim/file")},
		"hard link out":         {link(tar.TypeLink, "h", "../victim/file")},
		"hard link over a link": {link(tar.TypeSymlink, "esc", "../victim"), link(tar.TypeLink, "h", "esc/file")},
		"directory over a link": {link(tar.TypeSymlink, "esc", "../victim"), {Name: "esc", Typeflag: tar.TypeDir, Mode: 0o700}, file("esc/new")},
	} {
		dir := filepath.Join(outer, "in")
		os.Mkdir(dir, 0o755)
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				w.Write([]byte("evil"))
			}
		}
		w.Close()
		_, err := c.TarIn(t.Context(), wire.TarInRequest{Dir: dir, Overwrite: true}, &b)
		if got := describe(t, victim); !strings.HasSuffix(got, " mine\n") || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: outside changed: %s (%v)", name, got, err)
		}
		if st, _ := os.Stat(victim); st.Mode().Perm() != 0o755 {
			t.Errorf("%s: outside has mode %v", name, st.Mode())
		}
		if err == nil && name != "link to a file" {
			t.Errorf("%s: no error", name)
		}
		if err != nil && errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v (%s)", name, err, errs.KindOf(err))
		}
		os.RemoveAll(dir)
	}
}

func TestABadArchiveIsAnErrorAndNotAHang(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	for name, data := range map[string][]byte{
		"noise": bytes.Repeat([]byte("nonsense"), 1<<20),
		"cut":   append([]byte("f"), make([]byte, 300)...),
	} {
		if _, err := c.TarIn(t.Context(), wire.TarInRequest{Dir: t.TempDir()}, bytes.NewReader(data)); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.TarIn(t.Context(), wire.TarInRequest{Dir: "/no/such/dir"}, bytes.NewReader(make([]byte, 5<<20))); errs.KindOf(err) != errs.NotFound {
		t.Error(err)
	}
	if _, err := c.TarIn(t.Context(), wire.TarInRequest{Dir: "relative"}, strings.NewReader("")); errs.KindOf(err) != errs.Invalid {
		t.Error(err)
	}
}
