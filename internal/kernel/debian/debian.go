// Package debian fetches kernels from Debian's archives with apt's own
// verification, without root and without touching the host's apt: a private
// apt root fetches the signed lists and the package, whose files are then
// unpacked in Go. It is an adapter of kernel.Source.
package debian

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/banger-dev/banger/internal/aptsource"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/op"
)

// Bounds for what a kernel package may unpack to.
const (
	maxFiles = 20000
	maxBytes = 1 << 30
)

// Source fetches kernels from Debian.
type Source struct {
	// Cache is a directory for downloaded packages; it is made when needed
	// and may be deleted at any time.
	Cache string
	// Root is the host's file system, from which apt's sources are read.
	Root fs.FS
	// Mirrors, where not empty, is used in place of the host's sources:
	// addresses of archives that carry the recipe's suite.
	Mirrors []string
}

var _ kernel.Source = (*Source)(nil)

// cached remembers the newest package of a recipe, for when the archive
// cannot be reached.
type cached struct {
	Package string `json:"package"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

// Fetch implements kernel.Source.
func (s *Source) Fetch(ctx context.Context, r kernel.Recipe, dir string, stage *op.Stage) (kernel.Origin, error) {
	if err := os.MkdirAll(s.Cache, 0o700); err != nil {
		return kernel.Origin{}, err
	}
	deb, c, note, err := s.obtain(ctx, r, stage)
	if err != nil {
		return kernel.Origin{}, err
	}
	defer deb.Close()
	release, err := unpack(ctx, deb, dir, stage)
	if err != nil {
		if ctx.Err() != nil {
			return kernel.Origin{}, ctx.Err()
		}
		return kernel.Origin{}, errs.Wrap(err, errs.Internal, "kernel_package_unusable", "cannot unpack %s %s", c.Package, c.Version)
	}
	return kernel.Origin{Release: release, Note: note,
		Source: fmt.Sprintf("%s %s (debian %s)", c.Package, c.Version, r.Debian.Suite)}, nil
}

// obtain gives the package's file, whose digest was checked.
func (s *Source) obtain(ctx context.Context, r kernel.Recipe, stage *op.Stage) (*os.File, cached, string, error) {
	f, c, err := s.download(ctx, r, stage)
	if err == nil {
		return f, c, "", nil
	}
	if ctx.Err() != nil {
		return nil, cached{}, "", ctx.Err()
	}
	if f, c, ok := s.fromCache(r); ok {
		return f, c, fmt.Sprintf("using the downloaded %s: %v", c.Version, err), nil
	}
	if errs.CodeOf(err) != string(errs.Internal) {
		return nil, cached{}, "", err
	}
	return nil, cached{}, "", errs.New(errs.Unavailable, "kernel_fetch_failed", "cannot fetch kernel %q from Debian", r.Name).
		Because(err).WithHint("check the network and this host's apt sources, then try again: banger doctor")
}

func (s *Source) record(r kernel.Recipe) string {
	return filepath.Join(s.Cache, "kernel-"+r.Name+".json")
}

func (s *Source) file(sha string) string { return filepath.Join(s.Cache, "sha256-"+sha+".deb") }

// fromCache opens the package that the last download left, if it is whole.
func (s *Source) fromCache(r kernel.Recipe) (*os.File, cached, bool) {
	b, err := os.ReadFile(s.record(r))
	var c cached
	if err != nil || json.Unmarshal(b, &c) != nil {
		return nil, c, false
	}
	f, err := openChecked(s.file(c.SHA256), c.SHA256)
	return f, c, err == nil
}

// openChecked opens a file whose content has the digest.
func openChecked(name, sha string) (*os.File, error) {
	if len(sha) != sha256.Size*2 || strings.Trim(sha, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%q is no sha256", sha)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	if err == nil && hex.EncodeToString(h.Sum(nil)) != sha {
		err = fmt.Errorf("%s does not have its digest", filepath.Base(name))
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (s *Source) download(ctx context.Context, r kernel.Recipe, stage *op.Stage) (*os.File, cached, error) {
	uris, err := s.mirrors(r)
	if err != nil {
		return nil, cached{}, err
	}
	if _, err := os.Stat(r.Debian.Keyring); err != nil {
		return nil, cached{}, errs.New(errs.Unsupported, "kernel_needs_keyring", "cannot check Debian's signatures: no %s", r.Debian.Keyring).
			WithHint("install the package debian-archive-keyring, then try again")
	}
	work, err := os.MkdirTemp(s.Cache, "apt-*")
	if err != nil {
		return nil, cached{}, err
	}
	defer os.RemoveAll(work)
	// Mirrors are tried one after the other: apt would fail for one bad one.
	var a *apt
	for i, u := range uris {
		sub := filepath.Join(work, fmt.Sprint(i))
		if err = os.Mkdir(sub, 0o700); err != nil {
			return nil, cached{}, err
		}
		if a, err = newApt(sub, r.Debian.Keyring, r.Debian.Architecture, r.Debian.Suite, r.Debian.Component, []string{u}); err != nil {
			return nil, cached{}, err
		}
		stage.Progress(0, 0, "", "reading "+r.Debian.Suite)
		if err = a.update(ctx); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, cached{}, err
	}
	p, err := newest(a, r.Debian.Package)
	if err != nil {
		return nil, cached{}, err
	}
	c := cached{p.name, p.version, p.sha256}
	if f, err := openChecked(s.file(p.sha256), p.sha256); err == nil {
		return f, c, s.remember(r, c)
	}
	deb, err := a.download(ctx, p, func(n int64) { stage.Progress(n, p.size, "bytes", "downloading "+p.version) })
	if err != nil {
		return nil, cached{}, err
	}
	f, err := openChecked(deb, p.sha256)
	if err != nil {
		return nil, cached{}, fmt.Errorf("apt's download: %w", err)
	}
	if err := os.Rename(deb, s.file(p.sha256)); err != nil {
		_ = f.Close()
		return nil, cached{}, err
	}
	return f, c, s.remember(r, c)
}

// remember writes the record and drops the package it named before.
func (s *Source) remember(r kernel.Recipe, c cached) error {
	var old cached
	if b, err := os.ReadFile(s.record(r)); err == nil && json.Unmarshal(b, &old) == nil && old.SHA256 != c.SHA256 {
		_ = os.Remove(s.file(filepath.Base(old.SHA256)))
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return fsx.WriteFile(s.record(r), b, 0o600)
}

func (s *Source) mirrors(r kernel.Recipe) ([]string, error) {
	if len(s.Mirrors) > 0 {
		return s.Mirrors, nil
	}
	m, err := aptsource.Host(s.Root)
	if err != nil {
		return nil, err
	}
	list := m.Main
	if strings.HasSuffix(r.Debian.Suite, "-security") {
		list = m.Security
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Unsupported, "kernel_no_mirror", "cannot fetch kernel %q: this host's apt sources name no Debian archive", r.Name).
			WithHint("name a Debian mirror with %s in a file below /etc/apt/sources.list.d, then try again", r.Debian.Suite)
	}
	return list, nil
}

// newest finds the package that matches the pattern with the highest version.
func newest(a *apt, pattern string) (pkg, error) {
	var best pkg
	err := a.packages(func(p pkg) error {
		if ok, err := path.Match(pattern, p.name); err != nil || !ok {
			return err
		}
		if p.sha256 == "" || p.size <= 0 {
			return nil
		}
		if best.name == "" || CompareVersions(p.version, best.version) > 0 {
			best = p
		}
		return nil
	})
	if err == nil && best.name == "" {
		err = fmt.Errorf("no package matches %s", pattern)
	}
	return best, err
}

// unpack lays the package's kernel parts out in dir and gives the release.
func unpack(ctx context.Context, deb *os.File, dir string, stage *op.Stage) (string, error) {
	st, err := deb.Stat()
	if err != nil {
		return "", err
	}
	t, err := Data(&counted{ctx: ctx, r: deb, size: st.Size(), stage: stage})
	if err != nil {
		return "", err
	}
	var release string
	var files, total int64
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrDeb, err)
		}
		to, rel, ok := place(h)
		if !ok {
			continue
		}
		if release == "" {
			release = rel
		}
		if files, total = files+1, total+h.Size; files > maxFiles || total > maxBytes || h.Size < 0 {
			return "", fmt.Errorf("%w: it unpacks to too much", ErrDeb)
		}
		if rel != release {
			return "", fmt.Errorf("%w: it holds both %q and %q", ErrDeb, release, rel)
		}
		if err := fsx.WriteBeneath(dir, to, t, 0o644); err != nil {
			return "", err
		}
	}
	for _, n := range []string{"vmlinuz", "config", "modules"} {
		if _, err := os.Stat(filepath.Join(dir, n)); err != nil {
			return "", fmt.Errorf("%w: no %s in it", ErrDeb, n)
		}
	}
	return release, nil
}

// place says where a file of the package goes and of which release it is.
func place(h *tar.Header) (to, release string, ok bool) {
	if h.Typeflag != tar.TypeReg {
		return "", "", false
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	for _, part := range []string{"vmlinuz", "config"} {
		if rel, found := strings.CutPrefix(name, "boot/"+part+"-"); found && !strings.Contains(rel, "/") {
			return part, rel, true
		}
	}
	// Newer packages ship usr/lib.
	rest, found := strings.CutPrefix(strings.TrimPrefix(name, "usr/"), "lib/modules/")
	rel, below, deeper := strings.Cut(rest, "/")
	if !found || !deeper {
		return "", "", false
	}
	return "modules/" + below, rel, true
}

// counted is a reader that ends with its context and shows how far it is.
type counted struct {
	ctx   context.Context // of the one unpacking this reader serves
	r     io.Reader
	n     int64
	size  int64
	stage *op.Stage
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.stage.Progress(c.n, c.size, "bytes", "unpacking")
	return n, err
}
