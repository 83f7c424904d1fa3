package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/aptsource"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/image/ext4"
	"github.com/banger-dev/banger/internal/image/tarcheck"
	"github.com/banger-dev/banger/internal/npm"
	"github.com/banger-dev/banger/internal/op"
)

// Space that making an image needs, in bytes: the tree under construction with
// its downloads, and the image itself.
const (
	NeedBuild = 3 << 30
	NeedImage = 2 << 30
)

// architecture is the one that recipes are written for.
const architecture = "amd64"

// Source makes images from recipes. It implements image.Source.
type Source struct {
	Recipes fs.FS               // images.FS
	Cache   string              // directory for downloads that are kept
	Getenv  func(string) string // os.Getenv
	Root    string              // "/", another in tests
	Bin     string              // mmdebstrap, "" for the one on PATH
}

var _ image.Source = (*Source)(nil)

// Entries lists what there are recipes for.
func (s *Source) Entries() ([]image.Entry, error) {
	names, err := Names(s.Recipes)
	if err != nil {
		return nil, err
	}
	var all []image.Entry
	for _, n := range names {
		r, err := Load(s.Recipes, n)
		if err != nil {
			return nil, err
		}
		all = append(all, image.Entry{Name: n, Summary: r.Summary, OS: r.OS, Kernel: r.Kernel, Source: "recipe:" + n, Need: NeedImage})
	}
	return all, nil
}

// Make writes the recipe's root filesystem to dst and describes it. work is an
// empty directory for what is needed meanwhile. Codes: those of FindMirror,
// mmdebstrap_missing, unshare_missing, mmdebstrap_failed, debian_mirror,
// disk_full, and tarcheck's.
func (s *Source) Make(ctx context.Context, name, dst, work string, rep op.Reporter) (_ image.Manifest, err error) {
	if runtime.GOARCH != architecture {
		return image.Manifest{}, errs.New(errs.Unsupported, "image_architecture", "cannot make image %q here: it is for %s, this host is %s", name, architecture, runtime.GOARCH)
	}
	r, err := Load(s.Recipes, name)
	if err != nil {
		return image.Manifest{}, err
	}
	mirror, err := FindMirror(s.Root, s.Getenv)
	if err != nil {
		return image.Manifest{}, err
	}
	stage := rep.Stage("image", name)
	m, err := s.make(ctx, r, mirror, dst, work, stage)
	stage.End(err, fmt.Sprintf("%s: %d packages, %.1f GB", name, len(m.Packages), float64(m.Size)/1e9))
	for _, n := range m.Notes {
		rep.Note("image", n)
	}
	return m, err
}

func (s *Source) make(ctx context.Context, r *Recipe, mirror Mirror, dst, work string, stage *op.Stage) (image.Manifest, error) {
	meter := &meter{stage: stage}
	b := &bootstrap{bin: s.Bin, recipe: r, mirror: mirror, work: work, aptOpts: hostAptOptions(ctx), prog: &progress{report: meter.packages}}
	if err := b.prepare(); err != nil {
		return image.Manifest{}, errors.Join(err, b.clean(ctx))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mise := make(chan fetched, 1)
	go func() { mise <- s.fetchMise(ctx, r.Mise) }()

	pr, pw, err := os.Pipe()
	if err != nil {
		return image.Manifest{}, errors.Join(err, b.clean(ctx))
	}
	ran := make(chan error, 1)
	go func() {
		err := b.run(ctx, pw)
		ran <- errors.Join(err, pw.Close())
	}()
	var notes []string
	var status bytes.Buffer
	info, err := ext4.FromTar(ctx, pr, dst, ext4.Options{
		Label:    "banger-image",
		Progress: meter.written,
		Edit: tarcheck.Edit{
			Drop: r.drop, Add: append(r.add(), mirror.files(r)...),
			Tap:  map[string]io.Writer{"var/lib/dpkg/status": &status},
			More: func() ([]tarcheck.File, error) { return miseFile(r, <-mise, &notes) },
		},
	})
	if err == nil {
		_, err = io.Copy(io.Discard, pr) // tar pads its end
	}
	if err != nil {
		cancel() // the writer gave up: so must whoever writes to it
	}
	rerr := <-ran
	packages := parseStatus(status.Bytes())
	if err == nil && rerr == nil && len(packages) == 0 {
		err = errs.New(errs.Internal, "image_stream", "image %q came without its list of packages", r.Name)
	}
	err = errors.Join(pr.Close(), firstCause(rerr, err), b.clean(ctx))
	if err != nil {
		return image.Manifest{}, errors.Join(err, removeIfThere(dst))
	}
	return s.describe(r, info, packages, notes), nil
}

// firstCause picks the failure that explains the other: a broken stream is
// mostly mmdebstrap's end, and mmdebstrap's end mostly a full disk of ours.
func firstCause(ran, wrote error) error {
	switch {
	case wrote == nil:
		return ran
	case ran == nil || errs.CodeOf(wrote) == "disk_full" || errs.CodeOf(wrote) == "image_entry" || errs.CodeOf(wrote) == "image_limits":
		return wrote
	case errs.KindOf(ran) == errs.Cancelled && errs.KindOf(wrote) != errs.Cancelled:
		return wrote
	}
	return ran
}

func (s *Source) describe(r *Recipe, info ext4.Info, packages []image.Package, notes []string) image.Manifest {
	m := image.Manifest{
		Schema: 1, Name: r.Name, Digest: info.Digest, Size: info.Size, Used: info.Bytes, Architecture: architecture, OS: r.OS,
		Kernel: r.Kernel, Source: "recipe:" + r.Name, Created: time.Now().UTC().Format(time.RFC3339), Packages: packages, Notes: notes,
	}
	if info.Has(r.Init) || info.Has("/usr"+r.Init) {
		m.Init = r.Init
	}
	return m
}

// files are the image's own apt settings, without anyone's credentials.
func (m Mirror) files(r *Recipe) []tarcheck.File {
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	mtime := time.Unix(r.Epoch, 0)
	files := []tarcheck.File{{Name: "etc/apt/sources.list", Mode: 0o644, ModTime: mtime, Data: []byte(m.lines(r, keyring, true))}}
	if len(r.Extra) > 0 {
		files = append(files, tarcheck.File{Name: "etc/apt/preferences.d/banger", Mode: 0o644, ModTime: mtime, Data: []byte(r.pins())})
	}
	if len(r.Exclude.Paths) > 0 {
		var b strings.Builder
		b.WriteString("# What this image goes without; remove the file to get it with later installs.\n")
		for _, p := range r.Exclude.Paths {
			fmt.Fprintf(&b, "path-exclude=%s\n", p)
		}
		for _, p := range r.Exclude.Keep {
			fmt.Fprintf(&b, "path-include=%s\n", p)
		}
		files = append(files, tarcheck.File{Name: "etc/dpkg/dpkg.cfg.d/banger", Mode: 0o644, ModTime: mtime, Data: []byte(b.String())})
	}
	return files
}

// fetched is mise's package, or why there is none.
type fetched struct {
	path string
	err  error
}

// fetchMise gets mise's package while the rest is made.
func (s *Source) fetchMise(ctx context.Context, m *Mise) fetched {
	if m == nil {
		return fetched{}
	}
	scope, _, ok := strings.Cut(m.Package, "/")
	if !ok {
		scope = ""
	}
	registry, err := npm.HostFinder(s.Getenv).Find(ctx, scope)
	if err != nil {
		return fetched{err: err}
	}
	c := &npm.Client{Registry: registry, Cache: filepath.Join(s.Cache, "npm")}
	p, err := c.Fetch(ctx, npm.Package{Name: m.Package, Version: m.Version, Integrity: m.Integrity}, nil)
	return fetched{path: p, err: err}
}

// miseFile puts mise into the image, or notes why it is not there.
func miseFile(r *Recipe, got fetched, notes *[]string) ([]tarcheck.File, error) {
	if r.Mise == nil {
		return nil, nil
	}
	if got.err != nil {
		if errs.KindOf(got.err) == errs.Cancelled || errs.KindOf(got.err) == errs.Exhausted {
			return nil, got.err
		}
		note := fmt.Sprintf("made without mise: %s", aptsource.Scrub(got.err.Error()))
		if hint := errs.HintOf(got.err); hint != "" {
			note += fmt.Sprintf(" (%s, then banger image pull --force %s)", hint, r.Name)
		}
		*notes = append(*notes, note)
		return nil, nil
	}
	c, size, err := npm.Open(got.path, r.Mise.Member)
	if err != nil {
		return nil, err
	}
	return []tarcheck.File{{Name: tarcheck.Clean(r.Mise.Path), Mode: 0o755, ModTime: time.Unix(r.Epoch, 0), Size: size,
		Open: func() (io.ReadCloser, error) { return c, nil }}}, nil
}

func removeIfThere(p string) error {
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// meter joins the two halves of the work into one percentage.
type meter struct {
	mu    sync.Mutex // the two halves report from goroutines of their own
	stage *op.Stage
	last  int64
}

// Where the packages end and the writing begins, in percent, and how many
// bytes of content are usual.
const (
	packagesEnd = 88
	usualBytes  = 1_300_000_000
)

func (m *meter) packages(done, total int64, message string) {
	m.show(done*packagesEnd/max(total, 1), message)
}

func (m *meter) written(bytes int64) {
	if bytes < 1<<20 {
		return // tar's first entries come while packages are set up
	}
	m.show(packagesEnd+min(bytes*(99-packagesEnd)/usualBytes, 99-packagesEnd), fmt.Sprintf("writing %d MB", bytes/1_000_000))
}

// show never goes back.
func (m *meter) show(percent int64, message string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = max(m.last, percent)
	m.stage.Progress(m.last, 100, "%", message)
}
