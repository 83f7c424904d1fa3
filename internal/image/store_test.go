package image_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/op"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake makes small files in place of file systems.
type fake struct {
	names []string
	need  int64
	made  atomic.Int32
	// during runs while an image is made, with the directory of its rootfs.
	during func(ctx context.Context, dst, work string) error
	lie    bool
}

func (f *fake) Entries() ([]image.Entry, error) {
	var es []image.Entry
	for _, n := range f.names {
		es = append(es, image.Entry{Name: n, Source: "fake:" + n, Need: f.need})
	}
	return es, nil
}

func (f *fake) Make(ctx context.Context, name, dst, work string, r op.Reporter) (image.Manifest, error) {
	n := f.made.Add(1)
	r.Note("image", "making")
	data := fmt.Appendf(nil, "%s %d", name, n)
	if err := os.WriteFile(dst, data, 0o444); err != nil {
		return image.Manifest{}, err
	}
	if f.during != nil {
		if err := f.during(ctx, dst, work); err != nil {
			return image.Manifest{}, err
		}
	}
	m := image.Manifest{Schema: 1, Name: name, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(data)), Size: int64(len(data)), Created: fmt.Sprint(n)}
	if f.lie {
		m.Size++
	}
	return m, nil
}

func open(t *testing.T, dir string, f *fake) *image.Store {
	t.Helper()
	s, err := image.Open(dir, f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if errs.CodeOf(err) != code {
		t.Errorf("%v (code %q), want code %q", err, errs.CodeOf(err), code)
	}
}

// clean fails the test if a store holds anything unfinished.
func clean(t *testing.T, dir string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if strings.HasPrefix(e.Name(), "tmp-") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestEnsureMakesOnceAndFinds(t *testing.T) {
	dir := t.TempDir()
	f := &fake{names: []string{"debian-bookworm", "tiny"}}
	s := open(t, dir, f)
	_, err := s.Get("tiny")
	wantCode(t, err, "image_absent")
	if got := strings.Join(s.Catalog(), " "); got != "debian-bookworm tiny" {
		t.Errorf("catalog %q", got)
	}
	img, err := s.Ensure(t.Context(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	hex := strings.TrimPrefix(img.Manifest.Digest, "sha256:")
	for _, ref := range []string{"tiny", img.Manifest.Digest, hex, hex[:4], "sha256:" + hex[:9]} {
		got, err := s.Ensure(t.Context(), ref, nil)
		if err != nil || got.Rootfs != img.Rootfs || len(got.Names) != 1 || got.Names[0] != "tiny" {
			t.Errorf("%s: %+v, %v", ref, got, err)
		}
	}
	if f.made.Load() != 1 {
		t.Errorf("made %d times", f.made.Load())
	}
	if b, err := os.ReadFile(img.Rootfs); err != nil || string(b) != "tiny 1" {
		t.Errorf("%q, %v", b, err)
	}
	if l, err := open(t, dir, f).List(); err != nil || len(l) != 1 {
		t.Errorf("another store lists %v, %v", l, err)
	}
	clean(t, dir)
}

func TestUnknownNames(t *testing.T) {
	s := open(t, t.TempDir(), &fake{names: []string{"debian-bookworm", "tiny"}})
	for ref, hint := range map[string]string{
		"debian-bokworm": `"debian-bookworm"`, "debian": `"debian-bookworm"`, "tny": `"tiny"`, "zzzzzzzzzz": "banger image list",
		"": "banger image list", "../../etc/passwd": "banger image list", "UPPER": "banger image list", strings.Repeat("a", 1<<20): "banger image list",
		"sha256:abcdef": "banger image list", "abc": "",
	} {
		_, err := s.Ensure(t.Context(), ref, nil)
		wantCode(t, err, "image_unknown")
		wantCode(t, s.Known(t.Context(), ref), "image_unknown")
		if !strings.Contains(errs.HintOf(err), hint) {
			t.Errorf("%.30q: hint %q", ref, errs.HintOf(err))
		}
	}
	if err := s.Known(t.Context(), "tiny"); err != nil {
		t.Error(err)
	}
}

func TestDamageIsFound(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, img image.Image){
		"cut":      func(t *testing.T, img image.Image) { must(t, os.Truncate(img.Rootfs, 3)) },
		"gone":     func(t *testing.T, img image.Image) { must(t, os.Remove(img.Rootfs)) },
		"manifest": func(t *testing.T, img image.Image) { must(t, os.WriteFile(manifest(img), []byte("{"), 0o600)) },
		"changed": func(t *testing.T, img image.Image) {
			must(t, os.Chmod(img.Rootfs, 0o600))
			must(t, os.WriteFile(img.Rootfs, []byte("TINY 1"), 0o600))
		},
		"a link": func(t *testing.T, img image.Image) {
			must(t, os.Rename(img.Rootfs, img.Rootfs+"x"))
			must(t, os.Symlink(img.Rootfs+"x", img.Rootfs))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{names: []string{"tiny"}}
			dir := t.TempDir()
			s := open(t, dir, f)
			img, err := s.Ensure(t.Context(), "tiny", nil)
			must(t, err)
			damage(t, img)
			_, err = s.Ensure(t.Context(), "tiny", nil)
			wantCode(t, err, "image_corrupt")
			if h := errs.HintOf(err); h != "banger image pull --force tiny" {
				t.Errorf("hint %q", h)
			}
			if l, err := s.List(); err != nil || len(l) != 0 {
				t.Errorf("lists %v, %v", l, err)
			}
			if _, err := s.Pull(t.Context(), "tiny", true, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get("tiny"); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Dir(img.Rootfs)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the damaged image is still there: %v", err)
			}
			clean(t, dir)
		})
	}
}

func manifest(img image.Image) string {
	return filepath.Join(filepath.Dir(img.Rootfs), "manifest.json")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestVerifyFindsWhatNobodyWrote(t *testing.T) {
	f := &fake{names: []string{"tiny"}}
	s := open(t, t.TempDir(), f)
	img, err := s.Ensure(t.Context(), "tiny", nil)
	must(t, err)
	must(t, s.Verify(t.Context(), img))
	img.Manifest.Digest = "sha256:" + strings.Repeat("0", 64)
	wantCode(t, s.Verify(t.Context(), img), "image_corrupt")
}

func TestForceKeepsTheOldImage(t *testing.T) {
	s := open(t, t.TempDir(), &fake{names: []string{"tiny"}})
	old, err := s.Ensure(t.Context(), "tiny", nil)
	must(t, err)
	again, err := s.Pull(t.Context(), "tiny", false, nil)
	if err != nil || again.Manifest.Digest != old.Manifest.Digest {
		t.Errorf("without force: %v, %v", again.Manifest, err)
	}
	img, err := s.Pull(t.Context(), "tiny", true, nil)
	must(t, err)
	if img.Manifest.Digest == old.Manifest.Digest {
		t.Error("force made nothing new")
	}
	if got, err := s.Get(old.Manifest.Digest); err != nil || len(got.Names) != 0 {
		t.Errorf("the old one: %+v, %v", got, err)
	}
}

func TestTenPullsOneMaking(t *testing.T) {
	dir := t.TempDir()
	begun, release := make(chan struct{}), make(chan struct{})
	f := &fake{names: []string{"tiny"}, during: func(context.Context, string, string) error {
		close(begun)
		<-release
		return nil
	}}
	// two stores on one directory stand for two processes
	stores := []*image.Store{open(t, dir, f), open(t, dir, f)}
	var wg sync.WaitGroup
	waiting := make(chan struct{}, 100)
	first, leave := context.WithCancel(t.Context())
	wg.Go(func() {
		if _, err := stores[0].Ensure(first, "tiny", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("the first caller: %v", err)
		}
	})
	<-begun
	for i := range 10 {
		wg.Go(func() {
			if _, err := stores[i%2].Ensure(t.Context(), "tiny", func(op.Event) { waiting <- struct{}{} }); err != nil {
				t.Error(err)
			}
		})
	}
	for range 10 {
		<-waiting // each one joined, or waits for the other process
	}
	leave()
	close(release)
	wg.Wait()
	if f.made.Load() != 1 {
		t.Errorf("made %d times", f.made.Load())
	}
	clean(t, dir)
}

func TestFailuresLeaveNothing(t *testing.T) {
	broken := errs.New(errs.Unavailable, "mirror_gone", "no mirror")
	for name, c := range map[string]struct {
		f    *fake
		code string
	}{
		"source fails": {&fake{during: func(context.Context, string, string) error { return broken }}, "mirror_gone"},
		"no space":     {&fake{need: 1 << 60}, "disk_full"},
		"lies":         {&fake{lie: true}, "image_manifest"},
	} {
		dir := t.TempDir()
		c.f.names = []string{"tiny"}
		s := open(t, dir, c.f)
		_, err := s.Ensure(t.Context(), "tiny", nil)
		wantCode(t, err, c.code)
		clean(t, dir)
		_, err = s.Get("tiny")
		wantCode(t, err, "image_absent")
		if l, _ := s.List(); len(l) != 0 {
			t.Errorf("%s: lists %v", name, l)
		}
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	s := open(t, dir, &fake{names: []string{"tiny"}, during: func(ctx context.Context, _, _ string) error {
		cancel()
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	_, err := s.Ensure(ctx, "tiny", nil)
	wantCode(t, err, "cancelled")
	clean(t, dir)
	if l, err := fsx.TryLock(filepath.Join(dir, "tiny.lock")); err != nil {
		t.Errorf("the lock is still held: %v", err)
	} else {
		must(t, l.Unlock())
	}
}

func TestNextPullSweepsAfterAKill(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, &fake{names: []string{"tiny", "tiny2"}})
	for _, d := range []string{"tmp-tiny.123/out", "tmp-tiny2.9/out"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o700))
	}
	if _, err := s.Ensure(t.Context(), "tiny", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tmp-tiny.123")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead one's directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tmp-tiny2.9")); err != nil {
		t.Errorf("another name's directory went: %v", err)
	}
}

func TestOnlyPulledFromACatalog(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, &fake{names: []string{"tiny"}})
	if _, err := s.Ensure(t.Context(), "tiny", nil); err != nil {
		t.Fatal(err)
	}
	bare, err := image.Open(dir)
	must(t, err)
	if _, err := bare.Ensure(t.Context(), "tiny", nil); err != nil {
		t.Errorf("a local image without its source: %v", err)
	}
	_, err = bare.Pull(t.Context(), "tiny", true, nil)
	wantCode(t, err, "image_no_source")
}
