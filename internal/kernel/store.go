package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/flight"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/op"
)

// Directories and files of a store. What begins with tmpPrefix is unfinished
// and nobody's once the lock is free.
const (
	dirDigests = "sha256"
	dirNames   = "names"
	lockSuffix = ".lock"
	tmpPrefix  = "tmp-"
)

// Store keeps kernels by digest below one directory, with names that point to
// them. Several processes may use one directory.
type Store struct {
	dir     string
	recipes map[string]Recipe
	source  Source
	flights flight.Group[Kernel]
}

// Open opens the store below dir, making it (0700) when it is missing.
// recipes are the kernels it can make with source.
func Open(dir string, recipes map[string]Recipe, source Source) (*Store, error) {
	for _, d := range []string{dir, filepath.Join(dir, dirDigests), filepath.Join(dir, dirNames)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, errs.Wrap(err, errs.Internal, "kernel_store", "cannot open the kernel store")
		}
	}
	return &Store{dir: dir, recipes: recipes, source: source}, nil
}

// List gives every stored kernel, by name and then digest.
func (s *Store) List() ([]Kernel, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, dirDigests))
	if err != nil {
		return nil, errs.Wrap(err, errs.Internal, "kernel_store", "cannot list kernels")
	}
	var out []Kernel
	for _, e := range entries {
		if !digestForm.MatchString(e.Name()) {
			continue
		}
		k, err := s.load(e.Name())
		if err != nil {
			continue // half gone; Ensure makes it anew, doctor tells
		}
		k.Names = names[e.Name()]
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if x, y := strings.Join(a.Names, " "), strings.Join(b.Names, " "); x != y {
			return x < y
		}
		return a.Manifest.Digest < b.Manifest.Digest
	})
	return out, nil
}

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// names gives the names of each digest.
func (s *Store) names() (map[string][]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, dirNames))
	if err != nil {
		return nil, errs.Wrap(err, errs.Internal, "kernel_store", "cannot list kernel names")
	}
	out := map[string][]string{}
	for _, e := range entries {
		if !nameForm.MatchString(e.Name()) {
			continue
		}
		if d, err := s.resolve(e.Name()); err == nil {
			out[d] = append(out[d], e.Name())
		}
	}
	return out, nil
}

// resolve reads a name's digest (hex).
func (s *Store) resolve(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, dirNames, name))
	if err != nil {
		return "", err
	}
	d := strings.TrimPrefix(strings.TrimSpace(string(b)), "sha256:")
	if !digestForm.MatchString(d) {
		return "", fmt.Errorf("the name %s holds no digest", name)
	}
	return d, nil
}

// load reads a stored kernel and checks, cheaply, that its files are there in
// full size.
func (s *Store) load(hexDigest string) (Kernel, error) {
	dir := filepath.Join(s.dir, dirDigests, hexDigest)
	b, err := os.ReadFile(filepath.Join(dir, fileManifest))
	if err != nil {
		return Kernel{}, err
	}
	k := Kernel{
		VMLinux: filepath.Join(dir, fileVMLinux), Modules: filepath.Join(dir, fileModules),
		BootModules: filepath.Join(dir, dirBoot),
	}
	if err := json.Unmarshal(b, &k.Manifest); err != nil {
		return Kernel{}, fmt.Errorf("%s: %w", fileManifest, err)
	}
	if k.Manifest.Schema != 1 || k.Manifest.Digest != "sha256:"+hexDigest || digestOf(k.Manifest.Files) != k.Manifest.Digest {
		return Kernel{}, fmt.Errorf("%s does not fit its digest", fileManifest)
	}
	var size int64
	for name := range k.Manifest.Files {
		if !filepath.IsLocal(name) {
			return Kernel{}, fmt.Errorf("%s names %q", fileManifest, name)
		}
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return Kernel{}, err
		}
		if !st.Mode().IsRegular() {
			return Kernel{}, fmt.Errorf("%s is not a regular file", name)
		}
		size += st.Size()
	}
	if size != k.Manifest.Size {
		return Kernel{}, fmt.Errorf("the files have %d bytes in place of %d", size, k.Manifest.Size)
	}
	return k, nil
}

// Get finds a stored kernel by name, or by digest or a unique prefix of it
// (with or without "sha256:", four digits at least). Errors: kernel_unknown,
// kernel_ambiguous, kernel_corrupt.
func (s *Store) Get(ref string) (Kernel, error) {
	if nameForm.MatchString(ref) {
		d, err := s.resolve(ref)
		if err == nil {
			return s.loadAs(ref, d)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return Kernel{}, corrupt(ref, err)
		}
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	if len(prefix) >= 4 && len(prefix) <= 64 && strings.Trim(prefix, "0123456789abcdef") == "" {
		if d, err := s.byPrefix(ref, prefix); err != nil || d != "" {
			if err != nil {
				return Kernel{}, err
			}
			return s.loadAs(ref, d)
		}
	}
	return Kernel{}, s.unknown(ref)
}

func (s *Store) loadAs(ref, hexDigest string) (Kernel, error) {
	k, err := s.load(hexDigest)
	if err != nil {
		return Kernel{}, corrupt(ref, err)
	}
	names, err := s.names()
	if err != nil {
		return Kernel{}, err
	}
	k.Names = names[hexDigest]
	return k, nil
}

func (s *Store) byPrefix(ref, prefix string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, dirDigests))
	if err != nil {
		return "", errs.Wrap(err, errs.Internal, "kernel_store", "cannot list kernels")
	}
	found := ""
	for _, e := range entries {
		if !digestForm.MatchString(e.Name()) || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		if found != "" {
			return "", errs.New(errs.Invalid, "kernel_ambiguous", "several kernels have digests that begin with %q", ref).
				WithHint("give more digits: banger kernel list")
		}
		found = e.Name()
	}
	return found, nil
}

func (s *Store) unknown(ref string) error {
	known := make([]string, 0, len(s.recipes))
	for n := range s.recipes {
		known = append(known, n)
	}
	sort.Strings(known)
	e := errs.New(errs.NotFound, "kernel_unknown", "no kernel named %q", ref)
	if len(known) > 0 {
		return e.WithHint("known here: %s  (banger kernel list shows all)", strings.Join(known, ", "))
	}
	return e.WithHint("banger kernel list shows all")
}

func corrupt(ref string, err error) error {
	return errs.New(errs.Conflict, "kernel_corrupt", "kernel %q is damaged on disk", ref).Because(err).
		WithHint("fetch it again: banger kernel pull %s", ref)
}

// Verify reads every file of a kernel and compares digests; kernel_corrupt
// where one differs.
func (s *Store) Verify(ctx context.Context, k Kernel) error {
	dir := filepath.Dir(k.VMLinux)
	for name, want := range k.Manifest.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := digestFile(filepath.Join(dir, name))
		if err == nil && got != want {
			err = fmt.Errorf("%s has digest %.12s… in place of %.12s…", name, got, want)
		}
		if err != nil {
			return corrupt(k.Manifest.Name, err)
		}
	}
	return nil
}

// Ensure gives the kernel of a name, fetching it when it is not there or
// damaged. Callers asking for one name at the same time share one fetch, also
// across processes; a caller whose ctx ends leaves the others to it, and when
// the last one leaves the fetch ends and leaves nothing. Errors:
// kernel_unknown, kernel_fetch_failed and what the source names.
func (s *Store) Ensure(ctx context.Context, name string, report op.Reporter) (Kernel, error) {
	k, err := s.Get(name)
	if err == nil {
		return k, nil
	}
	if _, ok := s.recipes[name]; !ok {
		return Kernel{}, err
	}
	return s.share(ctx, name, false, report)
}

// Pull fetches the newest version of a named kernel, whether or not one is
// there, and points the name to it. Kernels that the name pointed to before
// stay: VMs and templates may use them.
func (s *Store) Pull(ctx context.Context, name string, report op.Reporter) (Kernel, error) {
	if _, ok := s.recipes[name]; !ok {
		return Kernel{}, s.unknown(name)
	}
	return s.share(ctx, name, true, report)
}

// share joins a running fetch of the name or begins one.
func (s *Store) share(ctx context.Context, name string, fresh bool, report op.Reporter) (Kernel, error) {
	key := name
	if fresh {
		key += " anew"
	}
	return s.flights.Do(ctx, key, report, func(ctx context.Context, r op.Reporter) (Kernel, error) {
		return s.fetch(ctx, name, fresh, r)
	})
}

func (s *Store) fetch(ctx context.Context, name string, fresh bool, report op.Reporter) (k Kernel, err error) {
	stage := report.Stage("kernel", name)
	defer func() {
		stage.End(err, fmt.Sprintf("%s (%s, %d MB)", name, k.Manifest.Release, k.Manifest.Size>>20))
	}()
	lock, err := fsx.Lock(ctx, filepath.Join(s.dir, name+lockSuffix))
	if err != nil {
		return Kernel{}, err
	}
	defer func() { _ = lock.Unlock() }()
	if !fresh {
		// Another process may have made it while we waited.
		if k, err := s.Get(name); err == nil {
			return k, nil
		}
	}
	s.sweep(name)
	work, err := os.MkdirTemp(s.dir, tmpPrefix+name+"-")
	if err != nil {
		return Kernel{}, classify(ctx, err, errs.Internal, "kernel_store", "cannot write to the kernel store")
	}
	defer os.RemoveAll(work)
	parts, out := filepath.Join(work, "parts"), filepath.Join(work, "out")
	for _, d := range []string{parts, out} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return Kernel{}, classify(ctx, err, errs.Internal, "kernel_store", "cannot write to the kernel store")
		}
	}
	r := s.recipes[name]
	origin, err := s.source.Fetch(ctx, r, parts, stage)
	if err != nil {
		return Kernel{}, classify(ctx, err, errs.Unavailable, "kernel_fetch_failed", "cannot fetch kernel %q", name)
	}
	if origin.Note != "" {
		report.Note("kernel", origin.Note)
	}
	stage.Progress(0, 0, "", "preparing "+origin.Release)
	m, err := assemble(ctx, r, origin, parts, out)
	if err != nil {
		return Kernel{}, classify(ctx, err, errs.Internal, "kernel_unusable", "cannot use kernel %q (%s)", name, origin.Source)
	}
	if err := s.commit(work, out, name, m.Digest); err != nil {
		return Kernel{}, classify(ctx, err, errs.Internal, "kernel_store", "cannot store kernel %q", name)
	}
	return s.Get(name)
}

// sweep removes what a killed process left of this name; the lock is held.
func (s *Store) sweep(name string) {
	left, err := filepath.Glob(filepath.Join(s.dir, tmpPrefix+name+"-*"))
	if err != nil {
		return
	}
	for _, p := range left {
		_ = os.RemoveAll(p)
	}
}

// commit moves the finished directory to its digest and points the name there.
func (s *Store) commit(work, out, name, digest string) error {
	hexDigest := strings.TrimPrefix(digest, "sha256:")
	to := filepath.Join(s.dir, dirDigests, hexDigest)
	if _, err := s.load(hexDigest); err != nil {
		// Not there, or damaged: then it makes way, and goes with work.
		if err := os.Rename(to, filepath.Join(work, "damaged")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, d := range []string{filepath.Join(out, dirBoot), out} {
			if err := fsx.SyncDir(d); err != nil {
				return err
			}
		}
		if err := os.Rename(out, to); err != nil {
			return err
		}
		if err := fsx.SyncDir(filepath.Dir(to)); err != nil {
			return err
		}
	}
	return fsx.WriteFile(filepath.Join(s.dir, dirNames, name), []byte(digest+"\n"), 0o600)
}
