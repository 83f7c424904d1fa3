package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/flight"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/op"
)

// Directories and files of a store. What begins with workPrefix is unfinished,
// and nobody's once the lock of its name is free.
const (
	dirDigests   = "sha256"
	dirNames     = "names"
	fileRootfs   = "rootfs.ext4"
	fileManifest = "manifest.json"
	fileStamp    = "stamp"
	lockSuffix   = ".lock"
	workPrefix   = "tmp-"
)

var (
	digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
	nameForm   = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)
)

// maxManifest bounds what is read of a manifest.
const maxManifest = 16 << 20

// Store keeps images by digest below one directory, with names that point to
// them. Several processes may use one directory at the same time.
type Store struct {
	dir     string
	sources []Source
	entries map[string]origin
	flights flight.Group[Image]
}

// origin is where a name of the catalog comes from.
type origin struct {
	Entry
	source Source
}

// Open opens the store below dir, making it (0700) when it is missing. The
// first source that has a name makes it.
func Open(dir string, sources ...Source) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, classify(err, "open the image store")
	}
	s := &Store{dir: dir, sources: sources, entries: map[string]origin{}}
	for _, d := range []string{dir, filepath.Join(dir, dirDigests), filepath.Join(dir, dirNames)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, classify(err, "open the image store")
		}
	}
	for _, src := range sources {
		es, err := src.Entries()
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			if _, ok := s.entries[e.Name]; !ok {
				s.entries[e.Name] = origin{e, src}
			}
		}
	}
	return s, nil
}

// Catalog lists the names that can be pulled, in order.
func (s *Store) Catalog() []string {
	names := make([]string, 0, len(s.entries))
	for n := range s.entries {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Entry describes a name of the catalog.
func (s *Store) Entry(name string) (Entry, bool) {
	o, ok := s.entries[name]
	return o.Entry, ok
}

// List gives every stored image that is whole, by name and then by age.
func (s *Store) List() ([]Image, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir(filepath.Join(s.dir, dirDigests))
	if err != nil {
		return nil, classify(err, "list images")
	}
	var all []Image
	for _, d := range dirs {
		if !digestForm.MatchString(d.Name()) {
			continue
		}
		img, err := s.load(d.Name())
		if err != nil {
			continue // damaged: Get says so to whoever wants it
		}
		img.Names = names[d.Name()]
		all = append(all, img)
	}
	slices.SortFunc(all, func(a, b Image) int {
		if c := strings.Compare(strings.Join(a.Names, " "), strings.Join(b.Names, " ")); c != 0 {
			return c
		}
		return strings.Compare(a.Manifest.Created, b.Manifest.Created)
	})
	return all, nil
}

// Get finds a stored image by name, by digest or by a unique prefix of it of
// at least four digits, with or without "sha256:". Codes: image_unknown,
// image_absent (the catalog has it, the store not yet), image_ambiguous,
// image_corrupt.
func (s *Store) Get(ref string) (Image, error) {
	hex, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	img, err := s.load(hex)
	if err != nil {
		return Image{}, s.corrupt(ref, err)
	}
	names, err := s.names()
	if err != nil {
		return Image{}, err
	}
	img.Names = names[hex]
	return img, nil
}

// Known fails with image_unknown when neither the store nor the catalog has
// the name. It reads no image.
func (s *Store) Known(_ context.Context, name string) error {
	if _, ok := s.entries[name]; ok {
		return nil
	}
	_, err := s.find(name)
	return err
}

// find gives the digest, as hex, that a name or prefix stands for.
func (s *Store) find(ref string) (string, error) {
	if nameForm.MatchString(ref) {
		switch hex, err := s.resolve(ref); {
		case err == nil:
			return hex, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", s.corrupt(ref, err)
		}
		if _, ok := s.entries[ref]; ok {
			return "", errs.New(errs.NotFound, "image_absent", "image %q is not here yet", ref).WithHint("banger image pull %s", ref)
		}
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	if len(prefix) < 4 || len(prefix) > 64 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return "", s.unknown(ref)
	}
	dirs, err := os.ReadDir(filepath.Join(s.dir, dirDigests))
	if err != nil {
		return "", classify(err, "list images")
	}
	found := ""
	for _, d := range dirs {
		if !digestForm.MatchString(d.Name()) || !strings.HasPrefix(d.Name(), prefix) {
			continue
		}
		if found != "" {
			return "", errs.New(errs.Invalid, "image_ambiguous", "several images have digests that begin with %q", ref).
				WithHint("give more digits: banger image list")
		}
		found = d.Name()
	}
	if found == "" {
		return "", s.unknown(ref)
	}
	return found, nil
}

// names gives the names of each digest.
func (s *Store) names() (map[string][]string, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, dirNames))
	if err != nil {
		return nil, classify(err, "list the names of images")
	}
	out := map[string][]string{}
	for _, f := range files {
		if !nameForm.MatchString(f.Name()) {
			continue
		}
		if hex, err := s.resolve(f.Name()); err == nil {
			out[hex] = append(out[hex], f.Name())
		}
	}
	return out, nil
}

// resolve reads the digest that a name points to.
func (s *Store) resolve(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, dirNames, name))
	if err != nil {
		return "", err
	}
	hex := strings.TrimPrefix(strings.TrimSpace(string(b)), "sha256:")
	if !digestForm.MatchString(hex) {
		return "", fmt.Errorf("the name holds no digest")
	}
	return hex, nil
}

// load reads one image's manifest and checks its rootfs against it.
func (s *Store) load(hex string) (Image, error) {
	dir := filepath.Join(s.dir, dirDigests, hex)
	m, err := readManifest(filepath.Join(dir, fileManifest))
	if err != nil {
		return Image{}, err
	}
	if m.Schema != 1 || m.Digest != "sha256:"+hex {
		return Image{}, fmt.Errorf("%s does not fit its digest", fileManifest)
	}
	img := Image{Manifest: m, Rootfs: filepath.Join(dir, fileRootfs)}
	return img, checkRootfs(img.Rootfs, filepath.Join(dir, fileStamp), m)
}

func readManifest(p string) (Manifest, error) {
	var m Manifest
	st, err := os.Stat(p)
	if err != nil {
		return m, err
	}
	if st.Size() > maxManifest {
		return m, fmt.Errorf("%s has %d bytes", fileManifest, st.Size())
	}
	b, err := os.ReadFile(p)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%s: %w", fileManifest, err)
	}
	return m, nil
}

// Ensure gives the image of a name or digest; one of the catalog is made when
// it is not here. Callers who want the same at once share one making, across
// processes too. A damaged image is an error, image_corrupt: VMs may rest on
// it, so it is not replaced unasked. Codes: those of Get and of the source,
// disk_full.
func (s *Store) Ensure(ctx context.Context, ref string, r op.Reporter) (Image, error) {
	img, err := s.Get(ref)
	if err == nil || errs.CodeOf(err) != "image_absent" {
		return img, err
	}
	return s.Pull(ctx, ref, false, r)
}

// Pull makes the image of a catalog name. One that is here is made anew only
// with force; the name then points to the new one, and the one before stays
// for the VMs that rest on it.
func (s *Store) Pull(ctx context.Context, name string, force bool, r op.Reporter) (Image, error) {
	o, ok := s.entries[name]
	if !ok {
		if err := s.Known(ctx, name); err != nil {
			return Image{}, err
		}
		return Image{}, errs.New(errs.Invalid, "image_no_source", "image %q cannot be pulled: it comes from no catalog", name).
			WithHint("banger image list --all shows what can be pulled")
	}
	key := name
	if force {
		key += " anew"
	}
	return s.flights.Do(ctx, key, r, func(ctx context.Context, r op.Reporter) (Image, error) { return s.pull(ctx, o, force, r) })
}

// unknown says that there is no such image, and which name may be meant.
func (s *Store) unknown(ref string) error {
	e := errs.New(errs.NotFound, "image_unknown", "no image named %q", ref)
	known := s.Catalog()
	if names, err := s.names(); err == nil {
		for _, ns := range names {
			known = append(known, ns...)
		}
	}
	slices.Sort(known)
	if best := closest(ref, slices.Compact(known)); best != "" {
		return e.WithHint("did you mean %q?  (banger image list --all lists them)", best)
	}
	return e.WithHint("banger image list --all lists them")
}

func (s *Store) corrupt(ref string, cause error) error {
	e := errs.New(errs.Conflict, "image_corrupt", "image %q is damaged on disk", ref).Because(cause)
	name := ref
	if _, ok := s.entries[ref]; !ok {
		name = "NAME"
	}
	return e.WithHint("banger image pull --force %s", name)
}

func classify(err error, what string) error {
	switch {
	case err == nil:
		return nil
	case fsx.IsFull(err):
		return errs.Wrap(err, errs.Exhausted, "disk_full", "cannot %s: no space left", what)
	case errors.Is(err, fs.ErrPermission):
		return errs.Wrap(err, errs.Denied, "image_store", "cannot %s", what)
	}
	return errs.Wrap(err, errs.Internal, "image_store", "cannot %s", what)
}
