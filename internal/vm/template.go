package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/paths"
)

// Template is a booted, paused VM kept on disk, from which VMs are cloned. Its
// directory never changes after it got its name.
type Template struct {
	Key          string    `json:"key"`
	Level        string    `json:"level"` // "agent"
	Image        string    `json:"image"`
	ImageDigest  string    `json:"image_digest"`
	Kernel       string    `json:"kernel"`
	KernelDigest string    `json:"kernel_digest"`
	Hypervisor   string    `json:"hypervisor"`
	CPUs         int       `json:"cpus"`
	Memory       int64     `json:"memory"`
	Disk         int64     `json:"disk"` // bytes, of each disk
	Cmdline      string    `json:"cmdline"`
	Created      time.Time `json:"created"`

	dir string
}

// Names in the templates' directory and in a template's.
const (
	templateFile = "template.json"
	usedFile     = "used" // its mtime is the last use
	newMark      = ".new-"
	// templateFormat is part of the key: raise it when what is kept changes.
	templateFormat = 1
	maxTemplate    = 1 << 20
	// badFor is how long VMs boot cold after a template could not be made.
	badFor = 10 * time.Minute
)

func (t *Template) file(name string) string { return filepath.Join(t.dir, name) }

func (t *Template) token() ([]byte, error) { return readToken(t.dir) }

func (t *Template) touch() {
	now := time.Now()
	os.Chtimes(t.file(usedFile), now, now) //nolint:errcheck // only the order of eviction depends on it
}

// templates finds, makes and removes templates.
type templates struct {
	s   *Service
	dir string

	mu     sync.Mutex
	flight map[string]*build
	ids    map[string]bool      // ids of machines that are being made into templates
	bad    map[string]time.Time // key → when none could be made; not tried again for a while
}

func newTemplates(s *Service) *templates {
	return &templates{s: s, dir: s.opt.Layout.Templates(), flight: map[string]*build{}, ids: map[string]bool{}, bad: map[string]time.Time{}}
}

// forVM gives the template to clone for the VM, made now when there is none.
// nil means a cold boot; why is told once.
func (t *templates) forVM(ctx context.Context, w *work) *Template {
	host, err := t.s.Driver.Probe(ctx)
	if err != nil || !host.Caps.Snapshot || !host.Caps.Pause {
		return nil
	}
	key, want, err := t.key(ctx, w)
	if err != nil {
		w.rep.Note("template", "no template: "+firstLine(err.Error()))
		return nil
	}
	if tmpl, err := t.load(key); err == nil {
		tmpl.touch()
		return tmpl
	}
	t.mu.Lock()
	failed, bad := t.bad[key]
	t.mu.Unlock()
	if bad && time.Since(failed) < badFor {
		return nil
	}
	tmpl, err := t.build(ctx, key, want, w)
	if err != nil {
		if ctx.Err() == nil {
			t.mu.Lock()
			t.bad[key] = time.Now()
			t.mu.Unlock()
			w.rep.Note("template", "no template could be made ("+firstLine(err.Error())+"); booting cold")
		}
		return nil
	}
	tmpl.touch()
	return tmpl
}

// suspect notes that a clone of the template did not come up; a template that
// nobody runs from goes, so that the next run makes it anew.
func (t *templates) suspect(tmpl *Template) {
	if _, _, err := t.remove([]string{tmpl.Key}, false); err != nil {
		t.s.log.Warn("a suspect template stays", "key", tmpl.Key, "err", err)
	}
}

// key is what a VM's template is found by: all that its RAM and devices depend
// on. want is the template as it would be.
func (t *templates) key(ctx context.Context, w *work) (string, *Template, error) {
	r := w.rec()
	host, err := t.s.Driver.Probe(ctx)
	if err != nil {
		return "", nil, err
	}
	initramfs, err := t.s.Boot.Initramfs(ctx, w.kernel)
	if err != nil {
		return "", nil, err
	}
	want := &Template{
		Level: "agent", Image: r.Spec.Image, ImageDigest: r.Image.Digest,
		Kernel: w.kernel.Manifest.Name, KernelDigest: w.kernel.Manifest.Digest,
		Hypervisor: host.Driver + " " + host.Version,
		CPUs:       r.Spec.CPUs, Memory: r.Spec.Memory, Disk: min(r.Spec.Disk, DefaultDisk),
		Cmdline: t.s.Boot.Cmdline(r.Spec.BootArgs),
	}
	b, err := json.Marshal(struct {
		Format                                              int
		Image, Rootfs, Kernel, VMLinux, Modules, Init       string
		Driver, Version, Binary, Accelerator, CPU, Cmd, Net string
		TSC                                                 uint64
		CPUs                                                int
		Memory, Disk                                        int64
	}{
		templateFormat, r.Image.Digest, r.Image.Rootfs, w.kernel.Manifest.Digest, w.kernel.VMLinux, w.kernel.Modules, initramfs.Digest,
		host.Driver, host.Version, host.Binary, string(host.Accelerator), host.CPUModel, want.Cmdline, r.Spec.Network,
		// measured anew by each daemon: to within 10 MHz it is the same
		(host.TSCkHz + 5_000) / 10_000, want.CPUs, want.Memory, want.Disk,
	})
	if err != nil {
		return "", nil, err
	}
	sum := sha256.Sum256(b)
	want.Key = hex.EncodeToString(sum[:12])
	return want.Key, want, nil
}

func isKey(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 12 && s == strings.ToLower(s)
}

// load reads a template that is complete.
func (t *templates) load(key string) (*Template, error) {
	dir := filepath.Join(t.dir, key)
	path := filepath.Join(dir, templateFile)
	if fi, err := os.Stat(path); err != nil || fi.Size() > maxTemplate {
		return nil, errors.Join(err, fs.ErrNotExist)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var tmpl Template
	if err := json.Unmarshal(b, &tmpl); err != nil || tmpl.Key != key {
		return nil, errs.New(errs.Internal, "template_damaged", "template %s is damaged", key).WithHint("banger template delete %s", key)
	}
	tmpl.dir = dir
	return &tmpl, nil
}

// TemplateView is a template as it is shown.
type TemplateView struct {
	Template
	Size   int64 // bytes of the host's disk
	Used   time.Time
	Clones int
}

// Templates lists every template, least used first.
func (s *Service) Templates() []TemplateView {
	list, err := os.ReadDir(s.templates.dir)
	if err != nil {
		return nil
	}
	clones := s.clones()
	var out []TemplateView
	for _, d := range list {
		if !d.IsDir() || !isKey(d.Name()) {
			continue
		}
		tmpl, err := s.templates.load(d.Name())
		if err != nil {
			s.log.Warn("template", "key", d.Name(), "err", err)
			continue
		}
		v := TemplateView{Template: *tmpl, Used: tmpl.Created, Clones: clones[tmpl.Key]}
		if fi, err := os.Stat(tmpl.file(usedFile)); err == nil {
			v.Used = fi.ModTime()
		}
		for _, f := range templateFiles {
			if n, err := fsx.Allocated(tmpl.file(f)); err == nil {
				v.Size += n
			}
		}
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Used.Before(out[j].Used) })
	return out
}

// templateFiles are all the files of a template.
var templateFiles = []string{
	paths.RAMFile, paths.Devices, paths.SystemDisk, paths.WorkDisk, initrdFile, tokenFile,
	hostKeyFile, hostPubFile, templateFile, usedFile,
}

// clones counts the VMs whose RAM maps each template.
func (s *Service) clones() map[string]int {
	out := map[string]int{}
	for _, e := range s.entries() {
		if r := e.record(); r.Template != "" {
			out[r.Template]++
		}
	}
	return out
}

// DeleteTemplates removes templates by key (or unique prefix), or all of them.
// One that a VM runs from is refused; with all it is left.
func (s *Service) DeleteTemplates(keys []string, all bool) (removed []string, freed int64, err error) {
	return s.templates.remove(keys, all)
}

func (t *templates) remove(keys []string, all bool) (removed []string, freed int64, err error) {
	views := t.s.Templates()
	var errors_ []error
	pick := func(key string) (TemplateView, error) {
		var hits []TemplateView
		for _, v := range views {
			if strings.HasPrefix(v.Key, key) && key != "" {
				hits = append(hits, v)
			}
		}
		if len(hits) == 1 {
			return hits[0], nil
		}
		return TemplateView{}, errs.New(errs.NotFound, "template_not_found", "no template %q", clip(key, 40)).WithHint("banger template list")
	}
	var chosen []TemplateView
	if all {
		chosen = views
	}
	for _, k := range keys {
		v, err := pick(k)
		if err != nil {
			errors_ = append(errors_, err)
			continue
		}
		chosen = append(chosen, v)
	}
	for _, v := range chosen {
		if v.Clones > 0 {
			if !all {
				errors_ = append(errors_, errs.New(errs.Conflict, "template_in_use", "template %s is in use by %d VMs", v.Key, v.Clones).WithHint("stop them first: banger ps"))
			}
			continue
		}
		if err := t.drop(v.Key); err != nil {
			errors_ = append(errors_, err)
			continue
		}
		removed, freed = append(removed, v.Key), freed+v.Size
	}
	return removed, freed, errors.Join(errors_...)
}

// drop takes the name away first, so that nobody finds half a template.
func (t *templates) drop(key string) error {
	gone := filepath.Join(t.dir, newMark+newID())
	if err := os.Rename(filepath.Join(t.dir, key), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeTemplateDir(gone)
}

func removeTemplateDir(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range list {
		known := ours(f.Name())
		for _, n := range templateFiles {
			known = known || n == f.Name()
		}
		if !known && f.Name() != lockFile {
			return fmt.Errorf("left in place, not made by banger: %s in %s", f.Name(), dir)
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// evict removes the least used templates until the rest fit the space allowed.
func (t *templates) evict(keep string) {
	limit := t.s.opt.TemplateSpace
	if limit <= 0 {
		return
	}
	views := t.s.Templates()
	var sum int64
	for _, v := range views {
		sum += v.Size
	}
	for _, v := range views {
		if sum <= limit {
			return
		}
		if v.Clones > 0 || v.Key == keep {
			continue
		}
		if err := t.drop(v.Key); err != nil {
			t.s.log.Warn("evict a template", "key", v.Key, "err", err)
			continue
		}
		t.s.log.Info("evicted a template", "key", v.Key, "size", v.Size)
		sum -= v.Size
	}
}

// building says whether a machine of that id is being made into a template.
func (t *templates) building(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ids[id]
}
