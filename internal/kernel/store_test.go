package kernel_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/kerneltest"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/kernels"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string, src kernel.Source) *kernel.Store {
	t.Helper()
	s, err := kernel.Open(dir, kerneltest.Recipes(), src)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// leftovers lists what lies in a store besides kernels, names and locks.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(dir, "tmp-*"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEnsureMakesAWholeKernelOnce(t *testing.T) {
	dir := t.TempDir()
	fetches := 0
	s := open(t, dir, &kerneltest.Source{Release: "6.1-x", Before: func(context.Context, string) error { fetches++; return nil }})
	var stages []op.Event
	k, err := s.Ensure(t.Context(), "test-1", func(e op.Event) { stages = append(stages, e) })
	if err != nil {
		t.Fatal(err)
	}
	m := k.Manifest
	if m.Release != "6.1-x" || m.HZ != 250 || m.SafeSMP || m.Name != "test-1" || len(k.Names) != 1 {
		t.Errorf("manifest %+v, names %v", m, k.Names)
	}
	if b, err := os.ReadFile(filepath.Join(k.BootModules, kernel.OrderFile)); err != nil || string(b) != "virtio.ko\nvirtio_net.ko\n" {
		t.Errorf("order %q, %v", b, err)
	}
	if b, err := os.ReadFile(k.VMLinux); err != nil || string(b[:4]) != "\x7fELF" {
		t.Errorf("vmlinux: %v", err)
	}
	if len(stages) < 3 || stages[0].Status != op.Started || stages[len(stages)-1].Status != op.Done {
		t.Errorf("stages %+v", stages)
	}
	again, err := s.Ensure(t.Context(), "test-1", nil)
	if err != nil || again.Manifest.Digest != m.Digest || fetches != 1 {
		t.Errorf("again: %v, %d fetches", err, fetches)
	}
	if err := s.Verify(t.Context(), k); err != nil {
		t.Error(err)
	}
	hexDigest := strings.TrimPrefix(m.Digest, "sha256:")
	for _, ref := range []string{"test-1", m.Digest, hexDigest, hexDigest[:8], "sha256:" + hexDigest[:8]} {
		if got, err := s.Get(ref); err != nil || got.VMLinux != k.VMLinux {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Names[0] != "test-1" {
		t.Errorf("list %+v, %v", list, err)
	}
	if l := leftovers(t, dir); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		if st, err := d.Info(); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", p, st.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEqualContentHasEqualDigest(t *testing.T) {
	src := &kerneltest.Source{Release: "6.1-x"}
	a, err1 := open(t, t.TempDir(), src).Ensure(t.Context(), "test-1", nil)
	b, err2 := open(t, t.TempDir(), src).Ensure(t.Context(), "test-1", nil)
	if err1 != nil || err2 != nil || a.Manifest.Digest != b.Manifest.Digest {
		t.Errorf("%v, %v: %s and %s", err1, err2, a.Manifest.Digest, b.Manifest.Digest)
	}
}

func TestPullMovesTheNameAndKeepsTheOld(t *testing.T) {
	src := &kerneltest.Source{Release: "6.1-a"}
	s := open(t, t.TempDir(), src)
	old, err := s.Ensure(t.Context(), "test-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	src.Release = "6.1-b"
	k, err := s.Pull(t.Context(), "test-1", nil)
	if err != nil || k.Manifest.Release != "6.1-b" {
		t.Fatalf("pulled %+v, %v", k.Manifest, err)
	}
	if k, err := s.Get(old.Manifest.Digest); err != nil || len(k.Names) != 0 {
		t.Errorf("the old one: names %v, %v", k.Names, err)
	}
	if list, _ := s.List(); len(list) != 2 {
		t.Errorf("%d kernels", len(list))
	}
}

func TestUnknownNamesAreSaid(t *testing.T) {
	s := open(t, t.TempDir(), &kerneltest.Source{})
	for _, ref := range []string{"nope", "", "../x", "sha256:abcd", "deadbeef", "A B"} {
		_, err := s.Ensure(t.Context(), ref, nil)
		if errs.CodeOf(err) != "kernel_unknown" || !strings.Contains(errs.HintOf(err), "test-1") {
			t.Errorf("%q: %v, hint %q", ref, err, errs.HintOf(err))
		}
	}
}

func TestDamageIsNoticedAndMended(t *testing.T) {
	s := open(t, t.TempDir(), &kerneltest.Source{Release: "6.1-x"})
	k, err := s.Ensure(t.Context(), "test-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Of full size, but other bytes: only Verify reads them.
	b, err := os.ReadFile(k.VMLinux)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(k.VMLinux, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), k); errs.CodeOf(err) != "kernel_corrupt" {
		t.Errorf("changed: %v", err)
	}
	if err := os.Truncate(k.VMLinux, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("test-1"); errs.CodeOf(err) != "kernel_corrupt" || errs.HintOf(err) == "" {
		t.Errorf("cut short: %v", err)
	}
	k, err = s.Ensure(t.Context(), "test-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), k); err != nil {
		t.Errorf("after mending: %v", err)
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		before func(context.Context, string) error
		code   string
	}{
		"source": {func(context.Context, string) error { return errors.New("no network") }, "kernel_fetch_failed"},
		"named":  {func(context.Context, string) error { return errs.New(errs.Unsupported, "kernel_x", "x") }, "kernel_x"},
		"parts": {func(_ context.Context, d string) error {
			return os.WriteFile(filepath.Join(d, "modules"), nil, 0o600)
		}, "kernel_fetch_failed"},
	} {
		s := open(t, dir, &kerneltest.Source{Before: c.before})
		var last op.Event
		_, err := s.Ensure(t.Context(), "test-1", func(e op.Event) { last = e })
		if errs.CodeOf(err) != c.code || last.Status != op.Failed {
			t.Errorf("%s: %v (%s), last event %+v", name, err, errs.CodeOf(err), last)
		}
	}
	list, err := open(t, dir, nil).List()
	if l := leftovers(t, dir); len(l) != 0 || len(list) != 0 || err != nil {
		t.Errorf("left behind: %v, %v, %v", l, list, err)
	}
}

func TestOneFetchForAllWhoAsk(t *testing.T) {
	var fetches atomic.Int32
	begun, release := make(chan struct{}), make(chan struct{})
	s := open(t, t.TempDir(), &kerneltest.Source{Release: "6.1-x", Before: func(ctx context.Context, _ string) error {
		if fetches.Add(1) == 1 {
			close(begun)
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	first, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := s.Ensure(first, "test-1", nil)
		gone <- err
	}()
	<-begun
	var wg sync.WaitGroup
	var joined sync.WaitGroup
	for range 10 {
		wg.Add(1)
		joined.Add(1)
		go func() {
			defer wg.Done()
			var once sync.Once
			k, err := s.Ensure(t.Context(), "test-1", func(op.Event) { once.Do(joined.Done) })
			if err != nil || k.Manifest.Release != "6.1-x" {
				t.Errorf("waiter: %v", err)
			}
		}()
	}
	joined.Wait()
	// The one who began it leaves; the others get their kernel.
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	close(release)
	wg.Wait()
	if n := fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

func TestLastToLeaveEndsTheFetch(t *testing.T) {
	dir := t.TempDir()
	begun := make(chan struct{})
	s := open(t, dir, &kerneltest.Source{Before: func(ctx context.Context, d string) error {
		close(begun)
		if err := os.WriteFile(filepath.Join(d, "half"), nil, 0o600); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	_, err := s.Ensure(ctx, "test-1", nil)
	if !errs.Is(err, errs.Cancelled) {
		t.Errorf("got %v", err)
	}
	if l := leftovers(t, dir); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
}

func TestTwoProcessesMakeOne(t *testing.T) {
	// Two stores on one directory lock each other out as two processes do.
	dir := t.TempDir()
	var fetches atomic.Int32
	src := &kerneltest.Source{Release: "6.1-x", Before: func(context.Context, string) error { fetches.Add(1); return nil }}
	var wg sync.WaitGroup
	for range 4 {
		s := open(t, dir, src)
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := s.Ensure(t.Context(), "test-1", nil); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if n := fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

func TestSweepsWhatAKilledFetchLeft(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "tmp-test-1-123")
	if err := os.MkdirAll(filepath.Join(left, "parts"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, &kerneltest.Source{Release: "6.1-x"})
	if _, err := s.Ensure(t.Context(), "test-1", nil); err != nil {
		t.Fatal(err)
	}
	if l := leftovers(t, dir); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
}

func TestRecipes(t *testing.T) {
	rs, err := kernel.ReadRecipes(kernels.Recipes)
	if err != nil || rs["generic-6.12"].Debian.Suite != "bookworm-security" {
		t.Errorf("%+v, %v", rs, err)
	}
	ok := "schema = 1\nname = \"k\"\n[debian]\nsuite=\"s\"\ncomponent=\"m\"\narchitecture=\"amd64\"\npackage=\"p\"\nkeyring=\"/k\"\n"
	for name, bad := range map[string]string{
		"schema":  strings.Replace(ok, "schema = 1", "schema = 2", 1),
		"name":    strings.Replace(ok, `"k"`, `"../k"`, 1),
		"key":     ok + "colour = \"red\"\n",
		"missing": strings.Replace(ok, "suite=\"s\"\n", "", 1),
		"pattern": strings.Replace(ok, `"p"`, `"[p"`, 1),
	} {
		if _, err := kernel.ReadRecipes(fstest.MapFS{"k.toml": {Data: []byte(bad)}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
