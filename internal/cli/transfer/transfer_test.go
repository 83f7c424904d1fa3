package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
)

// entry is a tar entry as a hostile guest may write it.
type entry struct {
	name string
	kind byte
	body string // or the target of a link
	mode int64
}

func stream(t testing.TB, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Uid: 4242, Gid: 4242, ModTime: time.Unix(1700000000, 0)}
		switch e.kind {
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = e.body
		case tar.TypeReg:
			h.Size = int64(len(e.body))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%q: %v", e.name, err)
		}
		if e.kind == tar.TypeReg {
			io.WriteString(w, e.body)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// tree lists what is in a directory: "name mode content".
func tree(t testing.TB, dir string) string {
	t.Helper()
	var l []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		what := ""
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			l = append(l, rel+" -> "+to)
			return nil
		case st.Mode().IsRegular():
			b, _ := os.ReadFile(p)
			what = " " + string(b)
		}
		l = append(l, rel+" "+st.Mode().String()+what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(l)
	return strings.Join(l, "\n")
}

func TestWhatAGuestSendsStaysInItsPlace(t *testing.T) {
	long := strings.Repeat("a/", 300) + "x"
	for _, c := range []struct {
		name    string
		in      []entry
		want    string // tree beneath the destination
		refused string // in the summary; "" for nothing refused
	}{
		{"a file", []entry{{"top/f", tar.TypeReg, "x", 0o640}}, "top drwxr-xr-x\ntop/f -rw-r----- x", ""},
		{"directories with their modes", []entry{{"top/", tar.TypeDir, "", 0o755}, {"top/d/", tar.TypeDir, "", 0o555}, {"top/d/f", tar.TypeReg, "x", 0o444}}, "top drwxr-xr-x\ntop/d dr-xr-xr-x\ntop/d/f -r--r--r-- x", ""},
		{"set-id and sticky bits go", []entry{{"top/f", tar.TypeReg, "x", 0o6755}, {"top/d/", tar.TypeDir, "", 0o1777}}, "top drwxr-xr-x\ntop/d drwxrwxrwx\ntop/f -rwxr-xr-x x", ""},
		{"parent", []entry{{"../evil", tar.TypeReg, "x", 0o644}}, "", "leads outside"},
		{"parent within", []entry{{"top/../../evil", tar.TypeReg, "x", 0o644}}, "", "leads outside"},
		{"parent that comes back", []entry{{"top/a/../b", tar.TypeReg, "x", 0o644}}, "", "leads outside"},
		{"absolute", []entry{{"/etc/passwd", tar.TypeReg, "x", 0o644}}, "", "absolute"},
		{"another name than asked for", []entry{{"other", tar.TypeReg, "x", 0o644}}, "", "not asked for"},
		{"prefix of another name", []entry{{"topper/f", tar.TypeReg, "x", 0o644}}, "", "not asked for"},
		{"dots are cleaned", []entry{{"./top/./f", tar.TypeReg, "x", 0o644}}, "top drwxr-xr-x\ntop/f -rw-r--r-- x", ""},
		{"link inside", []entry{{"top/f", tar.TypeReg, "x", 0o644}, {"top/l", tar.TypeSymlink, "f", 0}}, "top drwxr-xr-x\ntop/f -rw-r--r-- x\ntop/l -> f", ""},
		{"dangling link inside", []entry{{"top/l", tar.TypeSymlink, "sub/none", 0}}, "top drwxr-xr-x\ntop/l -> sub/none", ""},
		{"link outside", []entry{{"top/l", tar.TypeSymlink, "../../etc", 0}}, "top drwxr-xr-x", "link to the outside"},
		{"absolute link", []entry{{"top/l", tar.TypeSymlink, "/etc/passwd", 0}}, "top drwxr-xr-x", "link to the outside"},
		{"write through an absolute link", []entry{{"top/l", tar.TypeSymlink, "/tmp", 0}, {"top/l/evil", tar.TypeReg, "x", 0o644}}, "top drwxr-xr-x\ntop/l drwxr-xr-x\ntop/l/evil -rw-r--r-- x", "link to the outside"},
		{"write through a link inside", []entry{{"top/d/", tar.TypeDir, "", 0o755}, {"top/l", tar.TypeSymlink, "d", 0}, {"top/l/f", tar.TypeReg, "x", 0o644}}, "top drwxr-xr-x\ntop/d drwxr-xr-x\ntop/d/f -rw-r--r-- x\ntop/l -> d", ""},
		{"hard link to a copied file", []entry{{"top/f", tar.TypeReg, "x", 0o644}, {"top/h", tar.TypeLink, "top/f", 0}}, "top drwxr-xr-x\ntop/f -rw-r--r-- x\ntop/h -rw-r--r-- x", ""},
		{"hard link outside", []entry{{"top/h", tar.TypeLink, "../../etc/shadow", 0}}, "top drwxr-xr-x", "hard link"},
		{"hard link to an absolute path", []entry{{"top/h", tar.TypeLink, "/etc/shadow", 0}}, "top drwxr-xr-x", "hard link"},
		{"hard link to a symlink", []entry{{"top/l", tar.TypeSymlink, "x", 0}, {"top/h", tar.TypeLink, "top/l", 0}}, "top drwxr-xr-x\ntop/l -> x", "hard link"},
		{"hard link to what was here", []entry{{"top/h", tar.TypeLink, "top/mine", 0}}, "top drwxr-xr-x", "hard link"},
		{"device", []entry{{"top/d", tar.TypeChar, "", 0o666}}, "top drwxr-xr-x", "device"},
		{"block device", []entry{{"top/d", tar.TypeBlock, "", 0o666}}, "top drwxr-xr-x", "device"},
		{"pipe", []entry{{"top/p", tar.TypeFifo, "", 0o666}}, "top drwxr-xr-x", "device"},
		{"the last of two wins", []entry{{"top/f", tar.TypeReg, "1", 0o644}, {"top/f", tar.TypeReg, "2", 0o600}}, "top drwxr-xr-x\ntop/f -rw------- 2", ""},
		{"file then directory", []entry{{"top/f", tar.TypeReg, "1", 0o644}, {"top/f/", tar.TypeDir, "", 0o755}}, "top drwxr-xr-x\ntop/f -rw-r--r-- 1", "here it is a file"},
		{"directory then file", []entry{{"top/f/", tar.TypeDir, "", 0o755}, {"top/f", tar.TypeReg, "1", 0o644}}, "top drwxr-xr-x\ntop/f drwxr-xr-x", "here it is a directory"},
		{"file in a file", []entry{{"top/f", tar.TypeReg, "1", 0o644}, {"top/f/g", tar.TypeReg, "2", 0o644}}, "top drwxr-xr-x\ntop/f -rw-r--r-- 1", "cannot be made"},
		{"newline in a name", []entry{{"top/a\nb", tar.TypeReg, "x", 0o644}}, "top drwxr-xr-x\ntop/a\nb -rw-r--r-- x", ""},
		{"too deep", []entry{{"top/" + long, tar.TypeReg, "x", 0o644}}, "", "too deep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := unix.Umask(0o022)
			defer unix.Umask(old)
			outer := t.TempDir()
			dst := filepath.Join(outer, "dst")
			if err := os.Mkdir(dst, 0o755); err != nil {
				t.Fatal(err)
			}
			sum, err := Unpack(t.Context(), stream(t, c.in...), dst, UnpackOptions{From: "top", To: "top"})
			if err != nil {
				t.Fatal(err)
			}
			if got := tree(t, dst); got != c.want {
				t.Errorf("made:\n%s\nwant:\n%s", got, c.want)
			}
			if refused := strings.Join(sum.Refused, "\n"); (c.refused == "") != (refused == "") || !strings.Contains(refused, c.refused) {
				t.Errorf("refused %q, want %q", refused, c.refused)
			}
			if names, _ := os.ReadDir(outer); len(names) != 1 {
				t.Errorf("left its place: %v", names)
			}
			os.Chmod(filepath.Join(dst, "top", "d"), 0o755)
		})
	}
}

func TestTheUsersOwnFilesAreReplacedAndNotFollowed(t *testing.T) {
	outer := t.TempDir()
	dst, secret := filepath.Join(outer, "dst"), filepath.Join(outer, "secret")
	for _, err := range []error{
		os.Mkdir(dst, 0o755), os.WriteFile(secret, []byte("mine"), 0o600), os.Symlink(secret, filepath.Join(dst, "f")),
		os.Symlink(outer, filepath.Join(dst, "d")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	sum, err := Unpack(t.Context(), stream(t, entry{"f", tar.TypeReg, "new", 0o644}, entry{"d/evil", tar.TypeReg, "x", 0o644}), dst, UnpackOptions{From: ".", To: "."})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(secret); string(b) != "mine" {
		t.Error("wrote through the link")
	}
	if st, err := os.Lstat(filepath.Join(dst, "f")); err != nil || !st.Mode().IsRegular() {
		t.Errorf("the link stayed: %v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(outer, "evil")); err == nil || len(sum.Refused) != 1 {
		t.Errorf("a link of the user's led outside: %v", sum.Refused)
	}
}

func TestRenaming(t *testing.T) {
	for _, c := range []struct{ from, to, in, want string }{
		{"src", "dst", "src/a", "dst"}, {"src", "src", "src/a", "src"}, {".", ".", "./a", "a"}, {".", "sub", "a", "sub"}, {"f", "g", "f", "g"}, {"src", ".", "src/a", "a"},
	} {
		dir := t.TempDir()
		if _, err := Unpack(t.Context(), stream(t, entry{c.in, tar.TypeReg, "x", 0o644}), dir, UnpackOptions{From: c.from, To: c.to}); err != nil {
			t.Fatal(err)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 || names[0].Name() != c.want {
			t.Errorf("%+v: %v, %v", c, names, err)
		}
	}
}

func TestTheLastFreeSpaceIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	_, err := Unpack(t.Context(), stream(t, entry{"f", tar.TypeReg, "x", 0o644}), dir, UnpackOptions{From: ".", To: ".", floor: 1 << 62})
	if errs.CodeOf(err) != "no_space" || errs.KindOf(err) != errs.Exhausted {
		t.Errorf("%v", err)
	}
	// a size that is only claimed
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Size: 1 << 60, Mode: 0o644})
	if _, err := Unpack(t.Context(), &b, dir, UnpackOptions{From: ".", To: "."}); errs.CodeOf(err) != "no_space" {
		t.Errorf("10 million GB: %v", err)
	}
	if got := tree(t, dir); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

func TestADamagedStreamLeavesNoHalfFile(t *testing.T) {
	whole := stream(t, entry{"a", tar.TypeReg, "whole", 0o644}, entry{"b", tar.TypeReg, strings.Repeat("x", 5000), 0o644}).Bytes()
	dir := t.TempDir()
	_, err := Unpack(t.Context(), bytes.NewReader(whole[:3000]), dir, UnpackOptions{From: ".", To: "."})
	if errs.CodeOf(err) != "tar_stream" {
		t.Errorf("%v", err)
	}
	if got := tree(t, dir); got != "a -rw-r--r-- whole" {
		t.Errorf("left: %s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, bytes.NewReader(whole), t.TempDir(), UnpackOptions{From: ".", To: "."}); errs.KindOf(err) != errs.Cancelled {
		t.Errorf("%v", err)
	}
	lost := errs.New(errs.Unavailable, "daemon_connection_lost", "gone")
	if _, err := Unpack(t.Context(), io.MultiReader(bytes.NewReader(whole[:3000]), &failing{lost}), t.TempDir(), UnpackOptions{From: ".", To: "."}); !errors.Is(err, lost) {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestWhatIsPackedIsUnpackedTheSame(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(src, "d", "empty"), 0o755), os.WriteFile(filepath.Join(src, "d", "run.sh"), []byte("#!"), 0o755),
		os.WriteFile(filepath.Join(src, "ümlaut \n x"), bytes.Repeat([]byte{1}, 100_000), 0o640), os.Symlink("d/run.sh", filepath.Join(src, "l")),
		os.Symlink("/etc/passwd", filepath.Join(src, "abs")), unix.Mkfifo(filepath.Join(src, "pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	var told uint64
	sum, err := Pack(t.Context(), &b, []Source{{src, "."}}, func(n uint64) { told = n })
	if err != nil || sum.Bytes != 100_002 || told != sum.Bytes || len(sum.Refused) != 1 {
		t.Fatalf("%+v, %v, told %d", sum, err, told)
	}
	if m, err := Measure(t.Context(), []Source{{src, "."}}); err != nil || m.Bytes != sum.Bytes {
		t.Errorf("measured %+v, %v", m, err)
	}
	var relayed bytes.Buffer
	if _, err := Relay(t.Context(), &relayed, bytes.NewReader(b.Bytes()), ".", "sub", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), &relayed, dst, UnpackOptions{From: "sub", To: "."}); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(src, "pipe"))
	os.Remove(filepath.Join(src, "abs")) // refused on the host
	if got, want := tree(t, dst), tree(t, src); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPackingWhatIsNotThere(t *testing.T) {
	if _, err := Pack(t.Context(), io.Discard, []Source{{filepath.Join(t.TempDir(), "none"), "x"}}, nil); errs.CodeOf(err) != "file_not_found" {
		t.Errorf("%v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(stream(f, entry{"a/../../b", tar.TypeReg, "x", 0o644}).Bytes())
	f.Add(stream(f, entry{"l", tar.TypeSymlink, "../..", 0}, entry{"l/x", tar.TypeReg, "x", 0o644}).Bytes())
	f.Add(stream(f, entry{"d/", tar.TypeDir, "", 0o755}, entry{"h", tar.TypeLink, "d", 0}).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dst := filepath.Join(outer, "dst")
		if err := os.Mkdir(dst, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = Unpack(t.Context(), bytes.NewReader(b), dst, UnpackOptions{From: ".", To: "."})
		if names, _ := os.ReadDir(outer); len(names) != 1 {
			t.Fatalf("left its place: %v", names)
		}
		_ = filepath.WalkDir(dst, func(p string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}
